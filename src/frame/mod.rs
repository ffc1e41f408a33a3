//! Frames: views over bytes. No state, no allocation but the caller's, no panic on any input.
