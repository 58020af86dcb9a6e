//! The `redeemer` program.

fn main() {}
