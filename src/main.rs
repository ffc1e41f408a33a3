//! guestwire
fn main() {}
