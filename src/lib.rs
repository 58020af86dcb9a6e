//! `redeemer` decides, at sign-up-rush speed and never wrongly, whether a user may spend one use of an invite code.

pub mod app;
pub mod audit;
pub mod cli;
pub mod client;
pub mod config;
pub mod domain;
pub mod gate;
pub mod http;
pub mod ids;
pub mod ledger;
pub mod local_server;
pub mod recovery;
pub mod sync;
