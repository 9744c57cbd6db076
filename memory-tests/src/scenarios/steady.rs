//! After construction nothing allocates, and the device holds what the plan says.

use std::ops::ControlFlow;

use anyhow::ensure;
use touchstone_kernels::ledger::{self, Count, Kind, Snapshot};
use touchstone_kernels::{Element, Outbox};
use touchstone_runtime::backend::Backend;
use touchstone_runtime::generate::{Generator, LOOKAHEAD, Request};
use touchstone_runtime::model::BURST;
use touchstone_runtime::sampling::Sampling;
use touchstone_runtime::{Cuda, Model, plan};

use super::model::{LIVELY, decode, generate, generating};
use super::subject::{CAPACITY, PROMPT, config, model};
use super::{Table, on_both_precisions, on_every_backend};
use crate::allocator::allocations;
use crate::scenario::Check;

/// Tokens decoded while allocations are counted.
pub(super) const TOKENS: usize = 100;

/// Runs `step`, one token, [`TOKENS`] times.
///
/// # Errors
/// Where that allocated.
pub(super) fn must_not_allocate(mut step: impl FnMut() -> Check) -> Check {
    let before = allocations();
    for _ in 0..TOKENS {
        step()?;
    }
    let made = allocations() - before;
    ensure!(made == 0, "{made} host allocations in {TOKENS} tokens");
    Ok(())
}

fn no_host_allocation_per_token<B: Backend>(b: &mut B) -> Check {
    for sampling in [Sampling::GREEDY, Sampling { temperature: 0.7, top_k: 9, top_p: 0.9, seed: 3 }] {
        let mut model = model(b)?;
        let mut tokens = Vec::with_capacity(2 * TOKENS);
        generate(b, &mut model, &sampling, 5, &mut tokens)?;
        must_not_allocate(|| {
            decode(b, &mut model)?;
            Ok(model.take(b, &mut tokens)?)
        })?;
    }
    Ok(())
}

/// From the first token that the generator brings to the last, past the end of the context; and nothing on the device all the while.
fn nothing_allocated_per_generated_token<B: Backend>(b: &mut B, requests: &[Request<'_>]) -> Check {
    let mut model = generating(b, requests.len())?;
    let mut generator = Generator::new(b, &mut model, requests.len(), LOOKAHEAD);
    // A backend may record its decode steps in the first generation.
    generator.generate(requests, |_, _| ControlFlow::Continue(()))?;
    let (held, peak) = (ledger::snapshot(), ledger::device_bytes_peak());
    let (mut first, mut last, mut tokens) = (None, 0, 0);
    let timings = generator.generate(requests, |_, _| {
        last = allocations();
        first.get_or_insert(last);
        tokens += 1;
        ControlFlow::Continue(())
    })?;
    ensure!(timings.slid > 0, "the window did not slide");
    let wanted: usize = requests.iter().map(|request| request.max_new_tokens).sum();
    ensure!(tokens == wanted, "{tokens} tokens of {wanted}");
    let made = last - first.unwrap_or(0);
    ensure!(made == 0, "{made} host allocations in {tokens} generated tokens");
    ensure!(ledger::snapshot() == held, "the ledger had {held}, and has {}", ledger::snapshot());
    ensure!(ledger::device_bytes_peak() == peak, "the peak rose from {peak}");
    Ok(())
}

const ONE: Request<'_> = Request { prompt: &PROMPT, max_new_tokens: 40, sampling: Sampling::GREEDY };

/// Requests that differ in everything.
fn ragged() -> [Request<'static>; 5] {
    let request =
        |length, max_new_tokens, sampling| Request { prompt: &PROMPT[..length], max_new_tokens, sampling };
    [
        ONE,
        request(1, 7, Sampling::GREEDY),
        request(4, 60, LIVELY),
        request(9, 33, Sampling { seed: 12, ..LIVELY }),
        request(2, 1, Sampling { temperature: 0.7, top_k: 0, top_p: 1.0, seed: 3 }),
    ]
}

/// What was entered in the ledger between two snapshots.
pub(super) fn entered(before: &Snapshot, after: &Snapshot, kind: Kind) -> Count {
    let (before, after) = (before.of(kind), after.of(kind));
    Count { handles: after.handles - before.handles, bytes: after.bytes - before.bytes }
}

fn the_plan_to_the_byte<E: Element>(cuda: &mut Cuda<E>) -> Check {
    let before = ledger::snapshot();
    let model = model(cuda)?;
    let after = ledger::snapshot();
    let planned = plan::plan(&config(), CAPACITY);
    // The outbox is the backend's own: its counters on the device, and its ring in pinned memory.
    let device = Count {
        handles: planned.len() + 1,
        bytes: plan::total_bytes(&planned, cuda.precision())
            + Outbox::state_len(CAPACITY.batch) * size_of::<u32>(),
    };
    let pinned = Count {
        handles: 1,
        bytes: plan::outbox_slots(&config(), CAPACITY) * CAPACITY.batch * size_of::<u64>(),
    };
    for (kind, planned) in [(Kind::DeviceMemory, device), (Kind::PinnedMemory, pinned)] {
        let held = entered(&before, &after, kind);
        ensure!(held == planned, "{kind:?}: planned {planned:?}, the ledger has {held:?}");
    }
    drop(model);
    ensure!(ledger::snapshot() == before, "dropped, and the ledger has {}", ledger::snapshot());
    Ok(())
}

fn nothing_allocated_after_construction<E: Element>(cuda: &mut Cuda<E>) -> Check {
    const STEPS: usize = 200;
    let mut model: Model<Cuda<E>> = model(cuda)?;
    let held = |now: Snapshot| (now.of(Kind::DeviceMemory), now.of(Kind::PinnedMemory));
    let (before, peak) = (held(ledger::snapshot()), ledger::device_bytes_peak());
    let (free_before, _) = cuda.device().memory()?;
    let mut tokens = Vec::with_capacity(STEPS + 1);
    generate(cuda, &mut model, &Sampling::GREEDY, STEPS - BURST + 1, &mut tokens)?;
    // A burst is recorded apart from a single step.
    model.decode(cuda, BURST)?;
    for _ in 0..BURST {
        model.take(cuda, &mut tokens)?;
    }
    ensure!(model.past(0) == PROMPT.len() + STEPS, "{} positions", model.past(0));
    let after = held(ledger::snapshot());
    ensure!(before == after, "the ledger had {before:?} after construction, {after:?} after {STEPS} steps");
    ensure!(ledger::device_bytes_peak() == peak, "the peak rose from {peak}");
    // The recorded decode step is the driver's own, and it may round it up to a step of its pool: that much and no more.
    const GRAPH_BYTES_MAX: usize = 4 << 20;
    let (free_after, _) = cuda.device().memory()?;
    let taken = free_before.saturating_sub(free_after);
    ensure!(taken <= GRAPH_BYTES_MAX, "the driver took {taken} bytes during {STEPS} steps");
    Ok(())
}

/// Adds the promises.
pub(super) fn list(table: &mut Table) {
    on_every_backend!(table, "model", "no-host-allocation-per-token", &[], |b| no_host_allocation_per_token(
        b
    ));
    on_every_backend!(table, "model", "nothing-per-generated-token", &[], |b| {
        nothing_allocated_per_generated_token(b, &[ONE])
    });
    on_every_backend!(table, "model", "nothing-per-token-of-a-ragged-batch", &[], |b| {
        nothing_allocated_per_generated_token(b, &ragged())
    });
    on_both_precisions!(table, "model", "the-plan-to-the-byte", &[], |b| the_plan_to_the_byte(b));
    on_both_precisions!(table, "model", "nothing-after-construction", &[], |b| {
        nothing_allocated_after_construction(b)
    });
}
