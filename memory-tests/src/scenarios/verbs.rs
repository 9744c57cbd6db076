//! Each verb of the backends alone, which on a GPU is one kernel.

use touchstone_runtime::backend::{
    AttentionShape, Backend, CURSOR_LEN, LinearShape, OUTBOX_ROWS, Rows, Step,
};
use touchstone_runtime::modules::Norm;
use touchstone_runtime::plan::{Entry, Kind};
use touchstone_runtime::sampling::Sampling;
use touchstone_runtime::weights::WeightSource;
use touchstone_runtime::{Error, Result};

use super::subject::{MANY, must_panic, weights};
use super::{Table, on_both_precisions, on_every_backend};
use crate::scenario::Check;

const CHANNELS: usize = 24;
const HEADS: usize = 3;
const WIDTH: usize = 40;
const VOCAB: usize = 37;
const CONTEXT: usize = 128;
/// The longest pass that the operands have room for: far longer than the GPU's kernels for few rows take, so that the kernels for many
/// take it, and one that the host spreads over threads.
const ROWS: usize = 100;
/// More rows than there is room for: every verb panics.
const TOO_MANY_ROWS: usize = 1000;

/// Operands for any verb.
struct Operands<B: Backend> {
    x: B::Buf,
    y: B::Buf,
    cache: (B::Buf, B::Buf),
    wide: B::Wide,
    tokens: B::Ids,
    cursor: B::Ids,
    table: B::Weight,
    matrix: B::Weight,
    bias: B::Weight,
    norm: Norm<B>,
    odd_norm: Norm<B>,
    outbox: B::Outbox,
}

impl<B: Backend> Operands<B> {
    fn new(b: &mut B) -> Result<Self> {
        let entry = |columns: usize, kind| Entry::new("operand", &[ROWS, columns], kind);
        let cache = Entry::new("cache", &[HEADS, CONTEXT, CHANNELS / HEADS], Kind::Working);
        let mut weight = |shape: &[usize]| b.weight(&weights().tensor("weight", shape)?);
        let (table, matrix, bias) =
            (weight(&[VOCAB, CHANNELS])?, weight(&[WIDTH, CHANNELS])?, weight(&[WIDTH])?);
        Ok(Self {
            x: b.buf(&entry(WIDTH, Kind::Working))?,
            y: b.buf(&entry(WIDTH, Kind::Working))?,
            cache: (b.buf(&cache)?, b.buf(&cache)?),
            wide: b.wide(&entry(VOCAB, Kind::Wide))?,
            tokens: b.ids(&entry(1, Kind::Ids))?,
            cursor: b.ids(&Entry::new("cursor", &[CURSOR_LEN], Kind::Ids))?,
            table,
            matrix,
            bias,
            norm: Norm::load(b, &weights(), "norm", CHANNELS, 1e-5)?,
            odd_norm: Norm::load(b, &weights(), "odd_norm", CHANNELS - 1, 1e-5)?,
            outbox: b.outbox(OUTBOX_ROWS, 1)?,
        })
    }
}

fn attention_shape(rows: usize) -> AttentionShape {
    let step = Step { batch: 1, time: rows };
    AttentionShape { step, heads: HEADS, head_size: CHANNELS / HEADS, context: CONTEXT }
}

/// A verb called on `rows` rows of the operands.
///
/// `layernorm` and `linear` come in rows that are whole vectors, and in rows that are not: other kernels take those.
type Call<B> = fn(&mut B, &mut Operands<B>, rows: usize) -> Result<()>;

fn embedding<B: Backend>(b: &mut B, o: &mut Operands<B>, rows: usize) -> Result<()> {
    let step = Step { batch: 1, time: rows };
    b.embedding(&mut o.wide, &o.tokens, &o.table, Some(&o.table), &o.cursor, step, CHANNELS)
}

fn layernorm<B: Backend>(b: &mut B, o: &mut Operands<B>, rows: usize) -> Result<()> {
    b.layernorm(&mut o.y, &o.wide, &o.norm, Rows::All(rows), CHANNELS)?;
    b.layernorm(&mut o.y, &o.wide, &o.odd_norm, Rows::All(rows), CHANNELS - 1)
}

fn linear<B: Backend>(b: &mut B, o: &mut Operands<B>, rows: usize) -> Result<()> {
    let shape = LinearShape { rows, inputs: CHANNELS, outputs: WIDTH };
    b.linear(&mut o.y, &o.x, &o.matrix, Some(&o.bias), shape)?;
    b.linear(&mut o.y, &o.x, &o.table, None, LinearShape { outputs: VOCAB, ..shape })
}

fn logits<B: Backend>(b: &mut B, o: &mut Operands<B>, rows: usize) -> Result<()> {
    let shape = LinearShape { rows, inputs: CHANNELS, outputs: VOCAB };
    b.logits(&mut o.wide, &o.x, &o.table, shape)
}

fn gelu<B: Backend>(b: &mut B, o: &mut Operands<B>, rows: usize) -> Result<()> {
    b.gelu(&mut o.y, &o.x, rows * WIDTH)
}

fn add<B: Backend>(b: &mut B, o: &mut Operands<B>, rows: usize) -> Result<()> {
    b.add(&mut o.wide, &o.x, rows * CHANNELS)
}

fn append<B: Backend>(b: &mut B, o: &mut Operands<B>, rows: usize) -> Result<()> {
    b.append(&mut o.cache.0, &o.x, &o.cursor, attention_shape(rows))
}

fn attention<B: Backend>(b: &mut B, o: &mut Operands<B>, rows: usize) -> Result<()> {
    b.attention(&mut o.y, &o.x, &o.cache.0, &o.cache.1, &o.cursor, attention_shape(rows))
}

/// Samples the first row, and all as one, by every part of the rule; `rows` counts as the batch.
fn sample<B: Backend>(b: &mut B, o: &mut Operands<B>, rows: usize) -> Result<()> {
    let batch = if rows <= ROWS { 1 } else { rows };
    let sampling = Sampling { temperature: 0.8, top_k: 11, top_p: 0.9, seed: 7 };
    b.set_sampling(&mut o.outbox, &[sampling])?;
    // The second time, the whole buffer is a row.
    for vocab in [VOCAB, ROWS * VOCAB] {
        b.sample(&mut o.outbox, &mut o.tokens, &mut o.cursor, &o.wide, batch, vocab)?;
        b.take(&mut o.outbox, &mut Vec::with_capacity(1))?;
    }
    Ok(())
}

/// The verb, the entry points behind it, and its call.
fn verbs<B: Backend>() -> [(&'static str, &'static [&'static str], Call<B>); 9] {
    [
        ("embedding", &["embedding"], embedding),
        ("layernorm", &["layernorm", "layernorm_row"], layernorm),
        ("linear", &["linear_warp", "linear_tile", "linear_mma"], linear),
        ("logits", &["logits_warp", "logits_tile"], logits),
        ("gelu", &["gelu"], gelu),
        ("add", &["add"], add),
        ("append", &["append"], append),
        ("attention", &["attention", "attention_mma"], attention),
        ("sample", &["sample", "sample_wide"], sample),
    ]
}

/// The call of the verb `subject`.
fn call<B: Backend>(subject: &str) -> Call<B> {
    verbs().into_iter().find(|(name, ..)| *name == subject).expect("the table is made of these verbs").2
}

/// One row and many: the GPU has different kernels for them.
fn run<B: Backend>(b: &mut B, o: &mut Operands<B>, subject: &str) -> Result<()> {
    call(subject)(b, o, 1)?;
    call(subject)(b, o, ROWS)
}

fn forward<B: Backend>(b: &mut B, subject: &str) -> Check {
    let mut operands = Operands::new(b)?;
    run(b, &mut operands, subject)?;
    // Waits, so that a kernel that failed is heard.
    b.read_ids(&operands.cursor, CURSOR_LEN)?;
    Ok(())
}

fn many_instances<B: Backend>(b: &mut B, subject: &str) -> Check {
    let mut many = (0..MANY).map(|_| Operands::new(b)).collect::<Result<Vec<_>>>()?;
    for operands in &mut many {
        run(b, operands, subject)?;
    }
    b.read_ids(&many[0].cursor, CURSOR_LEN)?;
    Ok(())
}

fn panic_half_way<B: Backend>(b: &mut B, subject: &str) -> Check {
    must_panic(|| {
        let mut operands = Operands::new(b)?;
        call(subject)(b, &mut operands, 1)?;
        call(subject)(b, &mut operands, TOO_MANY_ROWS)
    })
}

/// The verb runs, and the device has no memory for what comes next.
fn error_half_way<B: Backend>(b: &mut B, subject: &str) -> Check {
    let too_large = Entry::new("more than any GPU has", &[1 << 48], Kind::Working);
    let stopped = Operands::new(b).and_then(|mut operands| {
        call(subject)(b, &mut operands, ROWS)?;
        b.buf(&too_large)
    });
    anyhow::ensure!(matches!(stopped, Err(Error::Kernel(_))), "it had to fail");
    Ok(())
}

/// Adds a scenario a verb, manner and backend. No verb of the host returns an error.
pub(super) fn list(table: &mut Table) {
    for (subject, entries, _) in verbs::<touchstone_runtime::Host<f32>>() {
        on_every_backend!(table, subject, "forward", entries, |b| forward(b, subject));
        on_every_backend!(table, subject, "many-instances", entries, |b| many_instances(b, subject));
        on_every_backend!(table, subject, "panic-half-way", entries, |b| panic_half_way(b, subject));
        on_both_precisions!(table, subject, "error-half-way", entries, |b| error_half_way(b, subject));
    }
}
