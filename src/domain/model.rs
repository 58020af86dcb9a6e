//! The whole gate in pure Rust.
