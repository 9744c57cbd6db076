//! The parity harness: runs golden cases on a backend and judges what comes out, by the rules of `golden/README.md`.
//!
//! [`check`] is one case on one backend in one mode. `tests/functional.rs` and the `touchstone check` command are lists of such checks.
#![forbid(unsafe_code)]

mod backends;
mod buffers;
mod check;
mod discover;
mod error;
mod operands;
pub mod ops;
mod recorder;
mod report;
pub mod twins;

pub use backends::{Backends, Target};
pub use check::{Check, Row, check, checks};
pub use discover::{CASES, MODELS, find_cases, find_root};
pub use error::{Error, Result};
pub use ops::Mode;
pub use report::{json, table};
