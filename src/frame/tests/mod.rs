//! Offloads against an obvious implementation, and against nothing at all: arbitrary bytes.

mod packets;
mod segmentation;
