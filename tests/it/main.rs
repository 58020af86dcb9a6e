//! Tests with real servers: redis-server, SQLite, and the program itself. Each starts its own.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test ends where something is not as it must be"
)]
#![expect(unreachable_pub, reason = "nothing outside sees any of it")]

mod access;
mod api;
mod audit;
mod audit_log;
mod backup;
mod batch;
mod batches;
mod claims;
mod cli;
mod coarse;
mod console;
mod deploy;
mod docs;
mod durability;
mod erasing;
mod events;
mod examples;
mod export;
mod failover;
mod faults;
mod idempotency;
mod import;
mod input;
mod leaders;
mod ledger;
mod logs;
mod metrics;
mod model;
mod nodes;
mod openapi;
mod page;
mod race;
mod race_conditions;
mod recovery;
mod reservations;
mod scripts;
mod spread;
mod spread_change;
mod spread_model;
mod spread_protocol;
mod spread_views;
mod stats;
mod support;
mod tidy;
mod tls;
mod torture;
#[cfg(feature = "otel")]
mod traces;
mod webhooks;
