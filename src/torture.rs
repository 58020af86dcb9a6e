//! Whether a law was broken: [`history`] is what clients asked and were told; [`check`] decides from it and from what
//! was there in the end, and is pure.

pub mod check;
pub mod history;
