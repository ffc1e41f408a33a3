//! mode.
