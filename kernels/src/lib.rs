//! Touchstone's CUDA kernels: device code in `cu/<op>.cu`, its launcher in `src/<op>.rs`, and what they need around them.
//!
//! Everything here is safe to call: a launcher checks the lengths of its buffers, and owners release what they hold when they are dropped.
//! Every handle of the driver is entered in the [`ledger`].

mod buffer;
mod clock;
mod compile;
mod context;
mod decoder;
mod device;
mod driver;
mod element;
mod entry;
mod error;
mod event;
mod graph;
pub mod ledger;
mod libraries;
mod outbox;
mod probe;
mod shape;
mod warm_up;

mod add;
mod append;
mod attention;
mod embedding;
mod gelu;
mod layernorm;
mod linear;
mod linear_add;
mod linear_gelu;
mod norm_linear;
mod norm_qkv;
mod product;
mod qkv;
mod rows;
mod sample;

pub use add::add;
pub use append::append;
pub use attention::{HEAD_SIZE_MAX, attention};
pub use buffer::Buffer;
pub use clock::Handoff;
pub use compile::{ARCHITECTURES, Compiled, SOURCES, Unit, cache_directory, compile};
pub use context::{Module, Stream};
pub use decoder::{
    BatchDecoder, BatchKernels, BatchLayout, ClusterDecoder, ClusterKernels, ClusterLayout, Decoder,
    DecoderKernels, Generation, GridDecoder, GridKernels, GridLayout, LayerState, LayerWeights, ModelShape,
    ShardLayout, Spread,
};
pub use device::{Device, Info};
pub use element::{Element, Plain};
pub use embedding::embedding;
pub use entry::{DecoderEntry, Entry};
pub use error::{Error, Result};
pub use event::Event;
pub use gelu::gelu;
pub use graph::Graph;
pub use layernorm::layernorm;
pub use linear::{linear, logits};
pub use linear_add::{linear_add, linear_add_many};
pub use linear_gelu::linear_gelu;
pub use norm_linear::{norm_gelu, norm_logits};
pub use norm_qkv::{NormQkvWeights, norm_qkv};
pub use outbox::{Outbox, SampleRule};
pub use probe::{Finding, GpuInfo, Probe, probe};
pub use product::tensor_cores;
pub use qkv::qkv;
pub use rows::FEW_ROWS_MAX;
pub use sample::sample;
pub use shape::{CURSOR_LEN, CacheShape, LinearShape, NormShape, ROW_MAX};
pub use warm_up::WarmUp;
