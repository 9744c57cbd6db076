//! Golden cases: reads a folder of recorded numbers, compares ours with them, and gives the verdict.
//!
//! The format and the gate are specified in `golden/README.md`. Nothing here computes an expected value. A case comes from outside
//! and is not trusted: every size is checked before memory is taken for it, and nothing panics on what a file says.
#![forbid(unsafe_code)]

mod case;
mod error;
mod judge;
mod manifest;
mod npy;
mod statistics;

pub use case::{Case, Output, Rule, Tensor};
pub use error::{Error, Result};
pub use judge::{Comparison, Feed, Ours, Standard, Verdict, Worst, judge};
pub use manifest::{CaseDtype, Dtype, Generator, Role};
