//! What the runners of modules share.

use touchstone_golden::Case;
use touchstone_runtime::Backend;
use touchstone_runtime::backend::{AttentionShape, Step};
use touchstone_runtime::modules::{LayerCache, Scratch};
use touchstone_runtime::plan::{Capacity, Entry, Kind, LogitRows};

use super::{Mode, Produced};
use crate::buffers::UNUSED;
use crate::error::Result;
use crate::recorder::Recorder;

/// A cache that nothing has been appended to, huge everywhere.
pub fn poisoned_cache<B: Backend>(b: &mut B, shape: AttentionShape) -> Result<LayerCache<B>> {
    let entry = |name: &str| {
        Entry::new(name, &[shape.step.batch, shape.heads, shape.context, shape.head_size], Kind::Working)
    };
    let mut cache = LayerCache::new(b, &entry("keys"), &entry("values"))?;
    let unused = vec![UNUSED; shape.cache_len()];
    b.write(&mut cache.keys, &unused)?;
    b.write(&mut cache.values, &unused)?;
    Ok(cache)
}

/// Intermediates of a block, NaN everywhere.
pub fn poisoned_scratch<B: Backend>(
    b: &mut B,
    channels: usize,
    width: usize,
    step: Step,
) -> Result<Scratch<B>> {
    let capacity = Capacity { batch: step.batch, time: step.time, logits: LogitRows::All };
    let mut s = Scratch::new(b, channels, width, capacity)?;
    let nan = vec![f64::NAN; step.rows() * channels.max(width)];
    let (narrow, wide) = (&nan[..step.rows() * channels], &nan[..step.rows() * width]);
    for buf in [&mut s.normed, &mut s.q, &mut s.k, &mut s.v, &mut s.core, &mut s.out] {
        b.write(buf, narrow)?;
    }
    for buf in [&mut s.up, &mut s.gelu] {
        b.write(buf, wide)?;
    }
    Ok(s)
}

/// Runs `forward` with a listener on the backend's taps and gives back what they said. See [`Recorder::new`] for `last` and `batch`.
pub fn with_taps<B: Backend>(
    b: &mut B,
    case: &Case,
    last: &str,
    batch: usize,
    mode: Mode,
    forward: impl FnOnce(&mut B) -> Result<()>,
) -> Result<Vec<Produced>> {
    let recorder = Recorder::new(case, last, batch, mode == Mode::Injected);
    b.taps().listen(Some(recorder.listener()));
    let result = forward(b);
    b.taps().listen(None);
    result.map(|()| recorder.finish())
}
