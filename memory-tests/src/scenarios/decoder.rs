//! A model whose whole generations are one launch: by a cluster of blocks, on GPUs that have room for it, or by all of the GPU.

use std::ops::ControlFlow;

use anyhow::ensure;
use touchstone_kernels::ledger::{self, Kind};
use touchstone_kernels::{Element, Outbox};
use touchstone_runtime::backend::Backend;
use touchstone_runtime::config::Config;
use touchstone_runtime::generate::{Generator, LOOKAHEAD, Request, capacity};
use touchstone_runtime::plan::{self, Capacity};
use touchstone_runtime::sampling::Sampling;
use touchstone_runtime::taps::Path;
use touchstone_runtime::{Cuda, Model, Result};

use super::model::LIVELY;
use super::steady::{TOKENS, entered, must_not_allocate};
use super::subject::{PROMPT, Stop, config, stop_everywhere, weights};
use super::{Table, on_both_precisions};
use crate::scenario::Check;

/// The narrowest dimensions that have a decoder.
fn narrow() -> Config {
    Config {
        hidden_size: 128,
        num_attention_heads: 4,
        intermediate_size: 128,
        max_position_embeddings: 41,
        ..config()
    }
}

fn narrow_capacity() -> Capacity {
    capacity(narrow().max_position_embeddings, 1)
}

/// The model, its decoder over a cluster or, with [`Path::Grid`] and [`Path::Shards`], over the GPU. On GPUs that are known to have room it must have one.
fn model<E: Element>(cuda: &mut Cuda<E>, path: Path) -> Result<Model<Cuda<E>>>
where
    Cuda<E>: Backend,
{
    cuda.taps().set_path(path);
    let model = Model::new(cuda, &narrow(), &weights(), narrow_capacity())?;
    let compute = cuda.device().info().compute.0;
    if compute == 9 || (compute >= 8 && path == Path::Grid) {
        assert!(model.decode_stride(cuda).is_some(), "there is no decoder");
    }
    Ok(model)
}

/// Greedy and sampled, to the end of the context and past it.
fn generate<E: Element>(cuda: &mut Cuda<E>, path: Path) -> Check
where
    Cuda<E>: Backend,
{
    let mut model = model(cuda, path)?;
    for (max_new_tokens, sampling) in [(32, Sampling::GREEDY), (32, LIVELY), (36, LIVELY), (1, LIVELY)] {
        let mut count = 0;
        let request = Request { prompt: &PROMPT, max_new_tokens, sampling };
        Generator::new(cuda, &mut model, 1, LOOKAHEAD).generate(&[request], |_, _| {
            count += 1;
            ControlFlow::Continue(())
        })?;
        ensure!(count == max_new_tokens, "{count} tokens of {max_new_tokens}");
    }
    Ok(())
}

/// Stopped after three tokens while the device goes on, and dropped so, or used again.
fn stopped<E: Element>(cuda: &mut Cuda<E>, path: Path, again: bool) -> Check
where
    Cuda<E>: Backend,
{
    let mut model = model(cuda, path)?;
    let mut texts = Vec::new();
    for _ in 0..=u32::from(again) {
        let mut text = Vec::new();
        let request = Request { prompt: &PROMPT, max_new_tokens: 32, sampling: LIVELY };
        Generator::new(cuda, &mut model, 1, LOOKAHEAD).generate(&[request], |_, token| {
            text.push(token);
            if text.len() == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        texts.push(text);
    }
    ensure!(texts.iter().all(|text| *text == texts[0]), "the second text is another: {texts:?}");
    Ok(())
}

fn the_plan_to_the_byte<E: Element>(cuda: &mut Cuda<E>, path: Path) -> Check
where
    Cuda<E>: Backend,
{
    let mut planned = plan::plan(&narrow(), narrow_capacity());
    cuda.taps().set_path(path);
    planned.extend(cuda.decoder_plan(&narrow(), narrow_capacity())?);
    let before = ledger::snapshot();
    let model = model(cuda, path)?;
    let held = entered(&before, &ledger::snapshot(), Kind::DeviceMemory);
    let bytes = plan::total_bytes(&planned, cuda.precision()) + Outbox::state_len(1) * size_of::<u32>();
    ensure!((held.handles, held.bytes) == (planned.len() + 1, bytes), "planned {bytes} bytes, held {held:?}");
    drop(model);
    ensure!(ledger::snapshot() == before, "dropped, and the ledger has {}", ledger::snapshot());
    Ok(())
}

/// Decode steps of every number allocate nothing, neither on the host nor on the device.
fn nothing_after_construction<E: Element>(cuda: &mut Cuda<E>, path: Path) -> Check
where
    Cuda<E>: Backend,
{
    let mut model = model(cuda, path)?;
    model.forward(cuda, &PROMPT)?;
    model.sample(cuda)?;
    let mut tokens = Vec::with_capacity(1 + 2 * TOKENS);
    model.take(cuda, &mut tokens)?;
    let (before, (free_before, _)) = (ledger::snapshot(), cuda.device().memory()?);
    must_not_allocate(|| {
        model.rewind(cuda, &[1])?;
        model.decode(cuda, 2)?;
        model.take(cuda, &mut tokens)?;
        Ok(model.take(cuda, &mut tokens)?)
    })?;
    ensure!(ledger::snapshot() == before, "the ledger had {before}, and has {}", ledger::snapshot());
    let (free_after, _) = cuda.device().memory()?;
    ensure!(free_after >= free_before, "the driver took {} bytes", free_before - free_after);
    Ok(())
}

/// Construction stops at every tensor.
fn error_loading<E: Element>(cuda: &mut Cuda<E>, path: Path) -> Check
where
    Cuda<E>: Backend,
{
    cuda.taps().set_path(path);
    let tensors = plan::weights(&narrow()).len();
    stop_everywhere(tensors, Stop::Error, |source| Model::new(cuda, &narrow(), source, narrow_capacity()))
}

const CLUSTER_ENTRIES: &[&str] = &["decode", "decode_pack", "decode_constants", "decode_head"];
const GRID_ENTRIES: &[&str] = &["decode_grid"];
const SHARDS_ENTRIES: &[&str] = &["decode_shards", "decode_shard_sums"];

/// Adds the scenarios.
pub(super) fn list(table: &mut Table) {
    for (subject, path, entries) in [
        ("decoder", Path::Fastest, CLUSTER_ENTRIES),
        ("decoder-grid", Path::Grid, GRID_ENTRIES),
        ("decoder-shards", Path::Shards, SHARDS_ENTRIES),
    ] {
        on_both_precisions!(table, subject, "generate", entries, |b| generate(b, path));
        on_both_precisions!(table, subject, "generate-and-break", &[], |b| stopped(b, path, false));
        on_both_precisions!(table, subject, "break-and-generate", &[], |b| stopped(b, path, true));
        on_both_precisions!(table, subject, "the-plan-to-the-byte", &[], |b| the_plan_to_the_byte(b, path));
        on_both_precisions!(table, subject, "nothing-after-construction", &[], |b| {
            nothing_after_construction(b, path)
        });
        on_both_precisions!(table, subject, "error-loading", &[], |b| error_loading(b, path));
    }
}
