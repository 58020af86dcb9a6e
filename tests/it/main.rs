//! Tests with real servers: redis-server, SQLite, and the program itself. Each starts its own.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test ends where something is not as it must be"
)]
#![expect(unreachable_pub, reason = "nothing outside sees any of it")]

mod api;
mod audit;
mod backup;
mod batch;
mod batches;
mod claims;
mod cli;
mod docs;
mod durability;
mod events;
mod export;
mod faults;
mod import;
mod input;
mod leaders;
mod ledger;
mod model;
mod openapi;
mod race;
mod race_conditions;
mod recovery;
mod reservations;
mod scripts;
mod stats;
mod support;
mod tidy;
mod torture;
mod webhooks;
