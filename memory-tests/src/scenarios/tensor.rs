//! The launchers of tensor cores' kernels, for many rows in bfloat16; GPU alone.

use half::bf16;
use touchstone_kernels::{self as kernels, Buffer, CURSOR_LEN, CacheShape, LinearShape};
use touchstone_runtime::Cuda;

use super::subject::{MANY, must_panic};
use super::{Table, push};
use crate::scenario::{Body, Check, Place};

const CHANNELS: u32 = 256;
const CONTEXT: u32 = 320;
/// Few rows, more, more than one of the widest tiles, and so many that most of a GPU has such tiles to make.
const ROWS: [u32; 4] = [40, 100, 300, 8960];
/// More rows than there is room for: every launcher panics.
const TOO_MANY_ROWS: u32 = 10_000;

/// Operands for any of them.
struct Operands {
    x: Buffer<bf16>,
    y: Buffer<bf16>,
    cache: (Buffer<bf16>, Buffer<bf16>),
    wide: Buffer<f32>,
    cursor: Buffer<u32>,
    matrix: Buffer<bf16>,
    vector: Buffer<bf16>,
}

impl Operands {
    fn new(device: &kernels::Device) -> kernels::Result<Self> {
        let (rows, channels) = (ROWS[3] as usize, CHANNELS as usize);
        let cache_len = channels * CONTEXT as usize;
        let pattern =
            |len: usize| (0..len).map(|i| bf16::from_f64((i % 7) as f64 / 8.0)).collect::<Vec<bf16>>();
        Ok(Self {
            x: Buffer::from_slice(device, &pattern(rows * channels))?,
            y: Buffer::zeroed(device, rows * channels)?,
            cache: (Buffer::zeroed(device, cache_len)?, Buffer::zeroed(device, cache_len)?),
            wide: Buffer::zeroed(device, rows * channels)?,
            cursor: Buffer::zeroed(device, CURSOR_LEN)?,
            matrix: Buffer::from_slice(device, &pattern(channels * channels))?,
            vector: Buffer::from_slice(device, &pattern(channels))?,
        })
    }
}

/// A launcher called on `rows` rows of the operands.
type Call = fn(&kernels::Device, &mut Operands, rows: u32) -> kernels::Result<()>;

fn square(rows: u32) -> LinearShape {
    LinearShape { rows, inputs: CHANNELS, outputs: CHANNELS }
}

fn cache_shape(rows: u32, head_size: u32) -> CacheShape {
    CacheShape { batch: 1, time: rows, heads: CHANNELS / head_size, head_size, context: CONTEXT }
}

fn linear(device: &kernels::Device, o: &mut Operands, rows: u32) -> kernels::Result<()> {
    kernels::linear(device, &mut o.y, &o.x, &o.matrix, Some(&o.vector), square(rows))
}

fn linear_add(device: &kernels::Device, o: &mut Operands, rows: u32) -> kernels::Result<()> {
    kernels::linear_add_many(device, &mut o.wide, &o.x, &o.matrix, &o.vector, square(rows))
}

fn linear_gelu(device: &kernels::Device, o: &mut Operands, rows: u32) -> kernels::Result<()> {
    kernels::linear_gelu(device, &mut o.y, &o.x, &o.matrix, &o.vector, square(rows))
}

fn qkv(device: &kernels::Device, o: &mut Operands, rows: u32) -> kernels::Result<()> {
    let ((keys, values), matrix) = ((&mut o.cache.0, &mut o.cache.1), &o.matrix);
    kernels::qkv(device, &mut o.y, keys, values, &o.x, [matrix; 3], &o.cursor, cache_shape(rows, 64))
}

/// Heads of every strategy.
fn attention(device: &kernels::Device, o: &mut Operands, rows: u32) -> kernels::Result<()> {
    for head_size in [32, 64, 128] {
        let (shape, (keys, values)) = (cache_shape(rows, head_size), (&o.cache.0, &o.cache.1));
        kernels::attention(device, &mut o.y, &o.x, keys, values, &o.cursor, shape)?;
    }
    Ok(())
}

/// The launcher, its entry points, and its call.
const LAUNCHERS: [(&str, &[&str], Call); 5] = [
    ("linear_mma", &["linear_mma"], linear),
    ("linear_add_many", &["linear_add_rows", "linear_add_mma", "linear_add_wgmma"], linear_add),
    (
        "linear_gelu",
        &["linear_gelu_rows", "linear_gelu_mma", "linear_gelu_wgmma", "linear_gelu_wgmma_narrow"],
        linear_gelu,
    ),
    ("qkv", &["qkv_rows", "qkv_mma", "qkv_wgmma", "qkv_wgmma_narrow"], qkv),
    ("attention_many", &["attention_mma", "attention_mma_wide", "attention_wgmma"], attention),
];

fn forward(cuda: &mut Cuda<bf16>, call: Call) -> Check {
    let mut operands = Operands::new(cuda.device())?;
    for rows in ROWS {
        call(cuda.device(), &mut operands, rows)?;
    }
    Ok(cuda.device().synchronize()?)
}

fn many_instances(cuda: &mut Cuda<bf16>, call: Call) -> Check {
    let device = cuda.device();
    let mut many = (0..MANY).map(|_| Operands::new(device)).collect::<kernels::Result<Vec<_>>>()?;
    for operands in &mut many {
        call(device, operands, ROWS[2])?;
    }
    Ok(device.synchronize()?)
}

fn panic_half_way(cuda: &mut Cuda<bf16>, call: Call) -> Check {
    must_panic(|| {
        let mut operands = Operands::new(cuda.device())?;
        call(cuda.device(), &mut operands, ROWS[0])?;
        call(cuda.device(), &mut operands, TOO_MANY_ROWS)
    })
}

/// The kernel runs, and the device has no memory for what comes next.
fn error_half_way(cuda: &mut Cuda<bf16>, call: Call) -> Check {
    let stopped = Operands::new(cuda.device()).and_then(|mut operands| {
        call(cuda.device(), &mut operands, ROWS[2])?;
        Buffer::<f32>::zeroed(cuda.device(), 1 << 48)
    });
    anyhow::ensure!(matches!(stopped, Err(kernels::Error::Driver { .. })), "it had to fail");
    Ok(())
}

/// A launcher used in some manner.
type Manner = fn(&mut Cuda<bf16>, Call) -> Check;

/// Adds a scenario a launcher and manner.
pub(super) fn list(table: &mut Table) {
    let manners: [(&str, Manner); 4] = [
        ("forward", forward),
        ("many-instances", many_instances),
        ("panic-half-way", panic_half_way),
        ("error-half-way", error_half_way),
    ];
    for (subject, entries, call) in LAUNCHERS {
        for (manner, run) in manners {
            let run = Box::new(move |cuda: &mut Cuda<bf16>| run(cuda, call));
            push(table, subject, manner, entries, |run| (Place::CudaBf16, Body::CudaBf16(run)), run);
        }
    }
}
