//! `redeemer` decides, at sign-up-rush speed and never wrongly, whether a user may spend one use of an invite code.
//!
//! An invite has N uses; many users ask at once, over any number of nodes; requests get lost and come again. The
//! decision is one Lua script in Redis, the *gate*; SQL, the *ledger*, gets the lasting record a moment later, from an
//! outbox that the same script has written.
//!
//! Read in this order:
//!
//! 1. [`domain`]: what the words mean. [`domain::model`] is the whole gate in pure Rust, and what the scripts are tested
//!    against; [`domain::command`] is what can be asked of it.
//! 2. [`gate`]: carries calls to Redis and answers back, and decides nothing.
//! 3. [`ledger`]: SQL, which remembers, and decides nothing either.
//! 4. [`sync`]: what carries the outbox across. [`recovery`]: from whatever Redis has to a partition that serves.
//!    [`audit`]: whether both sides agree. [`backup`]: a copy of the ledger, and the way back.
//!    [`feed`]: what happens, for those who follow it. [`jobs`]: what nodes do by themselves.
//! 5. [`http`]: the API. [`app`]: what wires and starts all of it, and stops it from the outside in.
//! 6. [`config`], [`local_server`], [`ids`], [`client`], [`cli`].
//! 7. [`torture`]: whether all of it holds while everything is killed.
//!
//! What never happens: the domain does no I/O; gate and ledger never see each other; no script writes before it has
//! decided everything, or on a history of Redis that the ledger has not admitted; no entry leaves the outbox that the
//! ledger does not have; no outcome is called known that is not.

pub mod app;
pub mod audit;
pub mod backup;
pub mod cli;
pub mod client;
pub mod config;
pub mod domain;
pub mod feed;
pub mod gate;
pub mod http;
pub mod ids;
pub mod jobs;
pub mod ledger;
pub mod local_server;
pub mod outbound;
pub mod outcomes;
pub mod recovery;
pub mod spread;
pub mod sync;
pub mod torture;
pub mod trace;
