//! The launchers that do the work of several verbs, which the backend reaches through its modules only; GPU alone.

use touchstone_kernels::{
    self as kernels, Buffer, CURSOR_LEN, CacheShape, Element, LinearShape, NormQkvWeights, NormShape,
};
use touchstone_runtime::Cuda;

use super::subject::{MANY, must_panic};
use super::{Table, on_both_precisions};
use crate::scenario::Check;

const CHANNELS: u32 = 24;
const HEADS: u32 = 3;
const CONTEXT: u32 = 32;
/// The most rows that the operands have room for.
const ROWS: u32 = 4;
/// More rows than there is room for: every launcher panics.
const TOO_MANY_ROWS: u32 = 1000;

/// Operands for any of them.
struct Operands<E: Element> {
    x: Buffer<E>,
    y: Buffer<E>,
    cache: (Buffer<E>, Buffer<E>),
    wide: Buffer<f32>,
    logits: Buffer<f32>,
    cursor: Buffer<u32>,
    matrix: Buffer<E>,
    vector: Buffer<E>,
}

impl<E: Element> Operands<E> {
    fn new(device: &kernels::Device) -> kernels::Result<Self> {
        let (rows, channels) = (ROWS as usize, CHANNELS as usize);
        let cache_len = channels * CONTEXT as usize;
        let pattern = |len: usize| (0..len).map(|i| E::from_f64((i % 7) as f64 / 8.0)).collect::<Vec<E>>();
        Ok(Self {
            x: Buffer::from_slice(device, &pattern(rows * channels))?,
            y: Buffer::zeroed(device, rows * channels)?,
            cache: (Buffer::zeroed(device, cache_len)?, Buffer::zeroed(device, cache_len)?),
            wide: Buffer::zeroed(device, rows * channels)?,
            logits: Buffer::zeroed(device, rows * channels)?,
            cursor: Buffer::zeroed(device, CURSOR_LEN)?,
            matrix: Buffer::from_slice(device, &pattern(channels * channels))?,
            vector: Buffer::from_slice(device, &pattern(channels))?,
        })
    }
}

/// A launcher called on `rows` rows of the operands.
type Call<E> = fn(&kernels::Device, &mut Operands<E>, rows: u32) -> kernels::Result<()>;

fn norm_shape(rows: u32) -> NormShape {
    NormShape { count: rows, time: 1, columns: CHANNELS, eps: 1e-5 }
}

fn linear_add<E: Element>(device: &kernels::Device, o: &mut Operands<E>, rows: u32) -> kernels::Result<()> {
    let shape = LinearShape { rows, inputs: CHANNELS, outputs: CHANNELS };
    kernels::linear_add(device, &mut o.wide, &o.x, &o.matrix, &o.vector, shape)
}

fn norm_gelu<E: Element>(device: &kernels::Device, o: &mut Operands<E>, rows: u32) -> kernels::Result<()> {
    let (norm, outputs) = ((&o.vector, &o.vector), CHANNELS as usize);
    kernels::norm_gelu(device, &mut o.y, &o.wide, norm, &o.matrix, &o.vector, norm_shape(rows), outputs)
}

fn norm_logits<E: Element>(device: &kernels::Device, o: &mut Operands<E>, rows: u32) -> kernels::Result<()> {
    let (norm, outputs) = ((&o.vector, &o.vector), CHANNELS as usize);
    kernels::norm_logits(device, &mut o.logits, &o.wide, norm, &o.matrix, None, norm_shape(rows), outputs)
}

fn norm_qkv<E: Element>(device: &kernels::Device, o: &mut Operands<E>, rows: u32) -> kernels::Result<()> {
    let shape =
        CacheShape { batch: 1, time: rows, heads: HEADS, head_size: CHANNELS / HEADS, context: CONTEXT };
    let weights = NormQkvWeights {
        norm_weight: &o.vector,
        norm_bias: &o.vector,
        q: &o.matrix,
        k: &o.matrix,
        v: &o.matrix,
        eps: 1e-5,
    };
    let (keys, values) = (&mut o.cache.0, &mut o.cache.1);
    kernels::norm_qkv(device, &mut o.y, keys, values, &o.wide, &weights, &o.cursor, shape)
}

/// The launcher, its entry point, and its call.
fn launchers<E: Element>() -> [(&'static str, &'static [&'static str], Call<E>); 4] {
    [
        ("linear_add", &["linear_add"], linear_add),
        ("norm_gelu", &["norm_gelu"], norm_gelu),
        ("norm_logits", &["norm_logits"], norm_logits),
        ("norm_qkv", &["norm_qkv"], norm_qkv),
    ]
}

/// The call of the launcher `subject`.
fn call<E: Element>(subject: &str) -> Call<E> {
    let found = launchers().into_iter().find(|(name, ..)| *name == subject);
    found.expect("the table is made of these launchers").2
}

fn forward<E: Element>(cuda: &mut Cuda<E>, subject: &str) -> Check {
    let mut operands = Operands::<E>::new(cuda.device())?;
    for rows in 1..=ROWS {
        call(subject)(cuda.device(), &mut operands, rows)?;
    }
    Ok(cuda.device().synchronize()?)
}

fn many_instances<E: Element>(cuda: &mut Cuda<E>, subject: &str) -> Check {
    let device = cuda.device();
    let mut many = (0..MANY).map(|_| Operands::<E>::new(device)).collect::<kernels::Result<Vec<_>>>()?;
    for operands in &mut many {
        call(subject)(device, operands, ROWS)?;
    }
    Ok(device.synchronize()?)
}

fn panic_half_way<E: Element>(cuda: &mut Cuda<E>, subject: &str) -> Check {
    must_panic(|| {
        let mut operands = Operands::<E>::new(cuda.device())?;
        call(subject)(cuda.device(), &mut operands, ROWS)?;
        call(subject)(cuda.device(), &mut operands, TOO_MANY_ROWS)
    })
}

/// The launcher runs, and the device has no memory for what comes next.
fn error_half_way<E: Element>(cuda: &mut Cuda<E>, subject: &str) -> Check {
    let stopped = Operands::<E>::new(cuda.device()).and_then(|mut operands| {
        call(subject)(cuda.device(), &mut operands, ROWS)?;
        Buffer::<f32>::zeroed(cuda.device(), 1 << 48)
    });
    anyhow::ensure!(matches!(stopped, Err(kernels::Error::Driver { .. })), "it had to fail");
    Ok(())
}

/// Adds a scenario a launcher, manner and precision.
pub(super) fn list(table: &mut Table) {
    for (subject, entries, _) in launchers::<f32>() {
        on_both_precisions!(table, subject, "forward", entries, |cuda| forward(cuda, subject));
        on_both_precisions!(table, subject, "many-instances", entries, |cuda| many_instances(cuda, subject));
        on_both_precisions!(table, subject, "panic-half-way", entries, |cuda| panic_half_way(cuda, subject));
        on_both_precisions!(table, subject, "error-half-way", entries, |cuda| error_half_way(cuda, subject));
    }
}
