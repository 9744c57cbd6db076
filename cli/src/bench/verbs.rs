//! Single verbs at a model's own dimensions, for one row: where a token's time goes.
//!
//! Calls go round over every block's own weights or cache, as a token does: one matrix read over and over would come from a cache
//! that the model does not fit into. They are recorded and replayed as decode steps are, and a time holds so many of them that
//! reading one value back, which waits for the device, does not count.

use std::time::{Duration, Instant};

use touchstone_runtime::Result;
use touchstone_runtime::backend::{AttentionShape, CURSOR_LEN, LinearShape, Step};
use touchstone_runtime::device::Device;
use touchstone_runtime::modules::LayerCache;
use touchstone_runtime::plan::{self, Entry, Kind};

use super::args::Measure;
use super::measure::bandwidth;
use super::row::Row;
use super::subject::Subject;

/// At least so many calls are recorded as one, so that a replay's own cost is shared.
const CALLS: usize = 64;
/// A time is at least this long.
const TIME_MIN: Duration = Duration::from_millis(10);

/// Every matrix product of the model, and attention over a full cache.
///
/// # Errors
/// What the runtime reports.
pub fn verbs<D: Device>(device: &mut D, subject: &Subject, repeats: usize) -> Result<Vec<Row>> {
    let (c, f) = (subject.config.hidden_size, subject.config.intermediate_size);
    let products = [("attention.q", c, c), ("mlp.up", c, f), ("mlp.down", f, c)];
    let mut rows = products
        .into_iter()
        .map(|(name, inputs, outputs)| linear(device, subject, repeats, name, inputs, outputs))
        .collect::<Result<Vec<_>>>()?;
    rows.push(logits(device, subject, repeats)?);
    rows.push(attention(device, subject, repeats)?);
    Ok(rows)
}

fn linear<D: Device>(
    device: &mut D,
    subject: &Subject,
    repeats: usize,
    name: &str,
    inputs: usize,
    outputs: usize,
) -> Result<Row> {
    let weights: Vec<D::Weight> = (0..subject.config.num_hidden_layers)
        .map(|i| {
            let path = format!("blocks.{i}.{name}.weight");
            device.weight(&subject.source().tensor(&path, &[outputs, inputs])?)
        })
        .collect::<Result<_>>()?;
    let x = activations(device, inputs)?;
    let mut y = device.buf(&Entry::new("y", &[1, outputs], Kind::Working))?;
    let shape = LinearShape { rows: 1, inputs, outputs };
    let call = |b: &mut D, y: &mut D::Buf, i: usize| b.linear(y, &x, &weights[i], None, shape);
    let times = times(device, &mut y, weights.len(), repeats, call, |b, y| b.read(y, 1).map(drop))?;
    let bytes = inputs * outputs * device.weight_bytes(subject.config.dtype);
    Ok(row(device, format!("linear {inputs} to {outputs}"), &times, bytes, weights.len()))
}

fn logits<D: Device>(device: &mut D, subject: &Subject, repeats: usize) -> Result<Row> {
    let (inputs, outputs) = (subject.config.hidden_size, subject.config.vocab_size);
    let weight = device.weight(&subject.source().tensor("embedding.token.weight", &[outputs, inputs])?)?;
    let x = activations(device, inputs)?;
    let mut y = device.wide(&Entry::new("y", &[1, outputs], Kind::Wide))?;
    let shape = LinearShape { rows: 1, inputs, outputs };
    let call = |b: &mut D, y: &mut D::Wide, _| b.logits(y, &x, &weight, shape);
    let times = times(device, &mut y, 1, repeats, call, |b, y| b.read_wide(y, 1).map(drop))?;
    let bytes = inputs * outputs * device.weight_bytes(subject.config.dtype);
    Ok(row(device, format!("logits {inputs} to {outputs}"), &times, bytes, 1))
}

fn attention<D: Device>(device: &mut D, subject: &Subject, repeats: usize) -> Result<Row> {
    let config = &subject.config;
    let shape = AttentionShape {
        step: Step { batch: 1, time: 1 },
        heads: config.num_attention_heads,
        head_size: config.head_size(),
        context: config.max_position_embeddings,
    };
    let filling = values(shape.cache_len());
    let mut caches = Vec::new();
    for pair in plan::caches(config, 1).chunks_exact(2) {
        let mut cache = LayerCache::new(device, &pair[0], &pair[1])?;
        device.write(&mut cache.keys, &filling)?;
        device.write(&mut cache.values, &filling)?;
        caches.push(cache);
    }
    let mut cursor = device.ids(&Entry::new("cursor", &[CURSOR_LEN], Kind::Ids))?;
    device.write_ids(&mut cursor, &[shape.context as u32 - 1, 0, 1])?;
    let q = activations(device, shape.channels())?;
    let mut y = device.buf(&Entry::new("y", &[1, shape.channels()], Kind::Working))?;
    let call = |b: &mut D, y: &mut D::Buf, i: usize| {
        let LayerCache { keys, values } = &caches[i];
        b.attention(y, &q, keys, values, &cursor, shape)
    };
    let times = times(device, &mut y, caches.len(), repeats, call, |b, y| b.read(y, 1).map(drop))?;
    let bytes = 2 * shape.cache_len() * device.precision().working_bytes;
    let at = format!("attention {} heads of {} over {}", shape.heads, shape.head_size, shape.context);
    Ok(row(device, at, &times, bytes, caches.len()))
}

/// A row whose call reads `bytes`; `copies` of them are read in turn.
fn row<D: Device>(device: &D, at: String, times: &Times, bytes: usize, copies: usize) -> Row {
    let limit = bandwidth(device, bytes * copies);
    Row::new(Measure::Verbs, at, "us a call", &times.each, times.calls).bytes(bytes, limit)
}

/// A row of activations.
fn activations<D: Device>(device: &mut D, channels: usize) -> Result<D::Buf> {
    let mut x = device.buf(&Entry::new("x", &[1, channels], Kind::Working))?;
    device.write(&mut x, &values(channels))?;
    Ok(x)
}

/// Values of both signs that are neither constant nor large.
fn values(len: usize) -> Vec<f64> {
    (0..len).map(|i| (i * 37 % 101) as f64 / 50.0 - 1.0).collect()
}

/// Times of as many calls each.
struct Times {
    each: Vec<Duration>,
    calls: usize,
}

/// Times `call` on copies number 0 to `copies` in turn; `wait` returns when its results are there.
fn times<D: Device, Y>(
    device: &mut D,
    y: &mut Y,
    copies: usize,
    repeats: usize,
    mut call: impl FnMut(&mut D, &mut Y, usize) -> Result<()>,
    wait: impl Fn(&mut D, &Y) -> Result<()>,
) -> Result<Times> {
    let calls = copies * CALLS.div_ceil(copies);
    let mut recording = D::Recording::default();
    let mut sample = |device: &mut D, replays: usize| -> Result<Duration> {
        let began = Instant::now();
        for _ in 0..replays {
            device.repeat(&mut recording, |b| (0..calls).try_for_each(|i| call(b, y, i % copies)))?;
        }
        wait(device, y)?;
        Ok(began.elapsed())
    };
    let mut replays = 1;
    // The first time is with the recording; the last of these runs is the warm-up.
    sample(device, replays)?;
    while sample(device, replays)? < TIME_MIN {
        replays *= 2;
    }
    let each = (0..repeats).map(|_| sample(device, replays)).collect::<Result<_>>()?;
    Ok(Times { each, calls: calls * replays })
}
