//! vhost.
