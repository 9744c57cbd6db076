//! The GPU itself, opened and closed, and the handles made on it; GPU alone.

use std::sync::OnceLock;

use anyhow::ensure;
use half::bf16;
use touchstone_kernels::{
    self as kernels, Buffer, Device, Error, Event, Graph, Module, Outbox, Stream, Unit, compile, ledger,
};
use touchstone_runtime::{Cuda, Model};

use super::subject::{CAPACITY, MANY, config, model, must_panic, weights};
use super::{Table, alone, on_gpu};
use crate::scenario::Check;

/// The kernels' image for this GPU, compiled once a process.
pub(super) fn image(device: &Device) -> kernels::Result<&'static [u8]> {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    if let Some(image) = IMAGE.get() {
        return Ok(image);
    }
    let (major, minor) = device.info().compute;
    let arch = format!("sm_{major}{minor}{}", if major >= 9 { "a" } else { "" });
    let image = compile(&arch, &Unit::ops())?.cubin;
    Ok(IMAGE.get_or_init(|| image))
}

/// Opened and closed; then the ledger must be empty.
fn open_and_close() -> Check {
    let device = Device::open(0)?;
    Buffer::<u32>::zeroed(&device, 1 << 20)?.read(1)?;
    Ok(())
}

/// The second opening shares the context of the first, and outlives it.
fn opened_twice() -> Check {
    let first = Device::open(0)?;
    let second = Device::open(0)?;
    let buffer = Buffer::<f32>::zeroed(&second, 1000)?;
    drop(first);
    buffer.read(1000)?;
    Ok(())
}

/// There is no such GPU: nothing stays open.
fn no_such_gpu() -> Check {
    ensure!(matches!(Device::open(1 << 20), Err(Error::NoDevice(_))), "GPU {} was opened", 1 << 20);
    let held = ledger::snapshot();
    ensure!(held.is_empty(), "no device is open, and the ledger has {held}");
    Ok(())
}

/// The backend is dropped before the model that it made: the model's buffers keep the device open.
fn model_outlives_backend() -> Check {
    let mut cuda = Cuda::<bf16>::open(0)?;
    let model: Model<Cuda<bf16>> = model(&mut cuda)?;
    drop(cuda);
    ensure!(!ledger::snapshot().is_empty(), "a model is there, and the ledger has nothing");
    drop(model);
    let held = ledger::snapshot();
    ensure!(held.is_empty(), "all is dropped, and the ledger has {held}");
    Ok(())
}

/// A panic unwinds through an open device and a model on it.
fn panic_with_a_device_open() -> Check {
    let mut opened = false;
    must_panic(|| -> touchstone_runtime::Result<()> {
        let mut cuda = Cuda::<f32>::open(0)?;
        let _model = Model::new(&mut cuda, &config(), &weights(), CAPACITY)?;
        opened = true;
        panic!("planned")
    })?;
    ensure!(opened, "it panicked too early");
    Ok(())
}

fn beside_another(_held: &mut Cuda<f32>) -> Check {
    open_and_close()
}

fn streams(cuda: &mut Cuda<f32>) -> Check {
    let context = cuda.device().context();
    let _many = (0..MANY).map(|_| Stream::new(context)).collect::<kernels::Result<Vec<_>>>()?;
    Ok(())
}

fn events(cuda: &mut Cuda<f32>) -> Check {
    let many = (0..MANY).map(|_| Event::new(cuda.device())).collect::<kernels::Result<Vec<_>>>()?;
    for event in &many {
        event.record()?;
    }
    many[1].microseconds_since(&many[0])?;
    // An event never recorded has no time.
    ensure!(
        Event::new(cuda.device())?.microseconds_since(&many[0]).is_err(),
        "an event never recorded had a time"
    );
    Ok(())
}

fn modules(cuda: &mut Cuda<f32>) -> Check {
    let image = image(cuda.device())?;
    let context = cuda.device().context();
    let _many = (0..MANY).map(|_| Module::load(context, image)).collect::<kernels::Result<Vec<_>>>()?;
    Ok(())
}

fn outboxes(cuda: &mut Cuda<f32>) -> Check {
    let mut many =
        (0..MANY).map(|_| Outbox::new(cuda.device(), 64, 3)).collect::<kernels::Result<Vec<_>>>()?;
    ensure!(many[0].take(&mut Vec::new()).is_err(), "a token was taken that nobody sampled");
    Ok(())
}

/// Records `y += x`.
pub(super) fn record(device: &Device, y: &mut Buffer<f32>, x: &Buffer<f32>) -> kernels::Result<Graph> {
    Graph::record(device, || kernels::add(device, y, x, 100))
}

fn graphs(cuda: &mut Cuda<f32>) -> Check {
    let device = cuda.device();
    let (mut y, x) = (Buffer::zeroed(device, 100)?, Buffer::zeroed(device, 100)?);
    let mut many = (0..MANY).map(|_| record(device, &mut y, &x)).collect::<kernels::Result<Vec<_>>>()?;
    for graph in &mut many {
        graph.launch()?;
    }
    Ok(())
}

fn error_while_recording(cuda: &mut Cuda<f32>) -> Check {
    let device = cuda.device();
    let (mut y, x) = (Buffer::zeroed(device, 100)?, Buffer::zeroed(device, 100)?);
    let recorded = Graph::record(device, || {
        kernels::add(device, &mut y, &x, 100)?;
        Err(Error::NoDevice("planned".into()))
    });
    ensure!(matches!(recorded, Err(Error::NoDevice(_))), "the error did not arrive");
    record(device, &mut y, &x)?.launch()?;
    Ok(device.synchronize()?)
}

/// A panic while the stream records must not leave it recording.
fn panic_while_recording(cuda: &mut Cuda<f32>) -> Check {
    let device = cuda.device();
    let (mut y, x) = (Buffer::zeroed(device, 100)?, Buffer::zeroed(device, 100)?);
    must_panic(|| {
        Graph::record(device, || {
            kernels::add(device, &mut y, &x, 100)?;
            // More elements than there are: a programmer's error, which panics.
            kernels::add(device, &mut y, &x, 1000)
        })
    })?;
    record(device, &mut y, &x)?.launch()?;
    Ok(device.synchronize()?)
}

/// Adds a scenario a handle and manner.
pub(super) fn list(table: &mut Table) {
    alone(table, "device", "open-and-close", open_and_close);
    alone(table, "device", "opened-twice", opened_twice);
    alone(table, "device", "error-no-such-gpu", no_such_gpu);
    alone(table, "device", "model-outlives-backend", model_outlives_backend);
    alone(table, "device", "panic-half-way", panic_with_a_device_open);
    on_gpu(table, "device", "open-beside-another", beside_another);
    on_gpu(table, "stream", "many-instances", streams);
    on_gpu(table, "event", "many-instances", events);
    on_gpu(table, "module", "many-instances", modules);
    on_gpu(table, "outbox", "many-instances", outboxes);
    on_gpu(table, "graph", "many-instances", graphs);
    on_gpu(table, "graph", "error-half-way", error_while_recording);
    on_gpu(table, "graph", "panic-half-way", panic_while_recording);
}
