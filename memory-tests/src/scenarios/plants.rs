//! Planted leaks: each must be found, and by the witness that it is planted for.

use std::hint::black_box;
use std::mem::forget;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use anyhow::ensure;
use cudarc::driver::result;
use touchstone_kernels::{Buffer, Event, Module, Outbox, Stream};
use touchstone_runtime::{Cuda, Host};

use super::device::{image, record};
use super::steady::must_not_allocate;
use super::subject::{MANY, model};
use super::{Table, alone, host, on_gpu};
use crate::scenario::{Check, Expect};
use crate::witness::Witness::{Driver, Host as HostMemory, Ledger};

/// What the ledger must miss, and only that many bytes as was forgotten.
const fn ledger(handle: &'static str) -> Expect {
    Expect::Leak { seen_by: &[Ledger], unseen_by: &[HostMemory], handle }
}

/// Forgets one byte of host memory.
#[inline(never)]
pub fn forget_one_byte() {
    forget(black_box(Box::new(1u8)));
}

fn one_byte(_: &mut Host<f32>) -> Check {
    forget_one_byte();
    Ok(())
}

/// Leaks in one run of many, which another way of counting than after each run could miss.
fn one_byte_once(_: &mut Host<f32>) -> Check {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    if RUNS.fetch_add(1, Relaxed) == 50 {
        forget_one_byte();
    }
    Ok(())
}

/// Each run hands a block to the next, so that one is always held and none is lost. It must not be called a leak.
fn handed_on(_: &mut Host<f32>) -> Check {
    static HELD: Mutex<Option<Box<[u8; 64]>>> = Mutex::new(None);
    *HELD.lock().expect("nobody panics with it") = Some(Box::new([0; 64]));
    Ok(())
}

/// A run keeps a block, and the next one frees it: after any even number of runs all is well, and one run in two leaks.
fn freed_a_run_later(_: &mut Host<f32>) -> Check {
    static HELD: Mutex<Option<Box<u8>>> = Mutex::new(None);
    let mut held = HELD.lock().expect("nobody panics with it");
    *held = if held.is_none() { Some(Box::new(1)) } else { None };
    Ok(())
}

fn allocation_per_token(b: &mut Host<f32>) -> Check {
    let _model = model(b)?;
    must_not_allocate(|| {
        drop(black_box(Box::new(1u8)));
        Ok(())
    })
}

fn scenario_error(_: &mut Host<f32>) -> Check {
    anyhow::bail!("planted error")
}

fn unexpected_panic(_: &mut Host<f32>) -> Check {
    panic!("planted panic")
}

fn crash(_: &mut Host<f32>) -> Check {
    std::process::abort()
}

fn silent_exit(_: &mut Host<f32>) -> Check {
    std::process::exit(0)
}

fn hang(_: &mut Host<f32>) -> Check {
    loop {
        std::thread::park();
    }
}

fn one_byte_in_the_ledger(cuda: &mut Cuda<f32>) -> Check {
    forget(Buffer::<u8>::zeroed(cuda.device(), 1)?);
    Ok(())
}

/// Takes memory from the driver behind the ledger's back.
fn two_mebibytes_at_the_driver(cuda: &mut Cuda<f32>) -> Check {
    cuda.device().memory()?; // makes the context current in this thread
    // SAFETY: no precondition; that nobody frees the memory is the point.
    let address = unsafe { result::malloc_sync(2 << 20) }?;
    ensure!(address != 0, "the driver gave no memory");
    Ok(())
}

fn stream(cuda: &mut Cuda<f32>) -> Check {
    forget(Stream::new(cuda.device().context())?);
    Ok(())
}

fn event(cuda: &mut Cuda<f32>) -> Check {
    forget(Event::new(cuda.device())?);
    Ok(())
}

fn module(cuda: &mut Cuda<f32>) -> Check {
    forget(Module::load(cuda.device().context(), image(cuda.device())?)?);
    Ok(())
}

fn graph(cuda: &mut Cuda<f32>) -> Check {
    let (mut y, x) = (Buffer::zeroed(cuda.device(), 100)?, Buffer::zeroed(cuda.device(), 100)?);
    forget(record(cuda.device(), &mut y, &x)?);
    Ok(())
}

fn outbox(cuda: &mut Cuda<f32>) -> Check {
    forget(Outbox::new(cuda.device(), MANY, 1)?);
    Ok(())
}

fn device() -> Check {
    forget(touchstone_kernels::Device::open(0)?);
    Ok(())
}

/// Adds the plants.
pub(super) fn list(table: &mut Table) {
    const HOST: Expect = Expect::Leak { seen_by: &[HostMemory], unseen_by: &[Ledger], handle: "" };
    for (manner, run, expect) in [
        ("one-byte-a-run", one_byte as fn(&mut Host<f32>) -> Check, HOST),
        ("one-byte-once", one_byte_once, HOST),
        ("a-block-freed-a-run-later", freed_a_run_later, HOST),
        ("a-block-handed-on", handed_on, Expect::Clean),
        (
            "an-allocation-a-token",
            allocation_per_token,
            Expect::Violation("100 host allocations in 100 tokens"),
        ),
        ("an-error", scenario_error, Expect::Violation("planted error")),
        ("a-panic", unexpected_panic, Expect::Violation("panicked: planted panic")),
        ("a-crash", crash, Expect::NoVerdict("signal: 6")),
        ("a-silent-exit", silent_exit, Expect::NoVerdict("no verdict")),
        ("a-hang", hang, Expect::NoVerdict("timed out")),
    ] {
        host(table, "planted", manner, expect, run);
    }
    // Where NVML speaks, missing device memory counts as seen only if NVML saw it too.
    let driver = Expect::Leak { seen_by: &[Driver], unseen_by: &[Ledger, HostMemory], handle: "" };
    for (manner, run, expect) in [
        (
            "one-byte-in-the-ledger",
            one_byte_in_the_ledger as fn(&mut Cuda<f32>) -> Check,
            ledger("+1 DeviceMemory (+1 bytes)"),
        ),
        ("two-mebibytes-at-the-driver", two_mebibytes_at_the_driver, driver),
        ("a-forgotten-stream", stream, ledger("+1 Stream")),
        ("a-forgotten-event", event, ledger("+1 Event")),
        ("a-forgotten-module", module, ledger("+1 Module")),
        ("a-forgotten-graph", graph, ledger("+1 Graph")),
        ("a-forgotten-outbox", outbox, ledger("+1 PinnedMemory (+64 bytes)")),
    ] {
        on_gpu(table, "planted", manner, run);
        plant(table, expect);
    }
    alone(table, "planted", "a-forgotten-device", device);
    plant(table, Expect::Leak { seen_by: &[Ledger], unseen_by: &[], handle: "+1 Context" });
}

/// Makes the last scenario a plant: one run, so that what is found is one leak and not its sum.
fn plant(table: &mut Table, expect: Expect) {
    let scenario = table.last_mut().expect("a scenario was just added");
    (scenario.expect, scenario.iterations) = (expect, 1);
}
