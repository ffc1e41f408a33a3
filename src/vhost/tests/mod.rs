//! The gate's decisions, one message at a time; feature dependencies; the control queue's commands.

mod control;
mod gate;
mod negotiation;
