//! The runtime: one small [`Backend`] trait, its two implementations, and the model that is written once over it.
//!
//! Letters used throughout: B batch, T time (new positions), P context (the cache's capacity), C channels, H heads,
//! D = C / H head width, F feed-forward width, V vocabulary, R = B · T rows.
#![forbid(unsafe_code)]

pub mod backend;
pub mod config;
pub mod cuda;
pub mod device;
pub mod error;
pub mod generate;
pub mod host;
pub mod locate;
pub mod model;
pub mod modules;
pub mod plan;
pub mod sampling;
pub mod taps;
pub mod threads;
pub mod tokenizer;
pub mod weights;

pub use backend::Backend;
pub use config::Config;
pub use cuda::Cuda;
pub use error::{Error, Result};
pub use host::Host;
pub use model::Model;
