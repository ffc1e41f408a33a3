//! Configuration: typed and already valid.
