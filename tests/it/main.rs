//! Tests with real servers: redis-server, SQLite, and the program itself. Each starts its own.

mod batch;
mod faults;
mod input;
mod model;
mod race;
mod recovery;
mod support;
