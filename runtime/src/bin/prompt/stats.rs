//! Times, speed and memory of a generation, and of a batch.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use touchstone_runtime::Config;
use touchstone_runtime::device::{Device, bandwidth_share};
use touchstone_runtime::generate::{self, Timings};
use touchstone_runtime::plan::{self, Capacity, Entry, Kind, token_bytes};

/// The figures of one generation.
#[derive(Clone, Debug, Serialize)]
pub struct Stats {
    /// From the program's start to a model ready to run.
    pub load_ms: f64,
    /// Tokens of the prompt that the model saw.
    pub prompt_tokens: usize,
    /// The pass over the prompt, up to the first token's arrival.
    pub prefill_ms: f64,
    /// From the program's start, or in a session from the prompt's entry, to the first token's arrival.
    pub first_token_ms: f64,
    /// Tokens generated.
    pub tokens: usize,
    /// Over all tokens after the first; none for a single token.
    pub tokens_per_s: Option<f64>,
    /// For a token served by the cache; none where there was none.
    pub decode_us: Option<f64>,
    /// For a token past the context.
    pub slide_us: Option<f64>,
    /// Bytes that a token served by the cache must read: the weights and the cache's filled part.
    pub token_bytes: usize,
    /// What the device can read in a second.
    pub bandwidth_bytes_per_s: Option<f64>,
    /// The time in which the device can read `token_bytes`, as a share of `decode_us`.
    pub bandwidth_share: Option<f64>,
    /// Bytes of every buffer of the memory plan.
    pub planned_bytes: usize,
    /// The most that the device held at once, where the backend counts it.
    pub peak_bytes: Option<u64>,
}

impl Stats {
    /// The figures of a generation that saw `prompt_tokens` tokens.
    pub fn new<D: Device>(
        device: &D,
        config: &Config,
        prompt_tokens: usize,
        timings: &Timings,
        load: Duration,
        wait: Duration,
    ) -> Self {
        let Timings { prefill, decoded, decode, slid, slide } = *timings;
        let precision = device.precision();
        let each_us =
            |time: Duration, count: usize| (count > 0).then(|| time.as_secs_f64() * 1e6 / count as f64);
        let later = decoded + slid;
        let weight_bytes = device.weight_bytes(config.dtype);
        // Over these tokens, the cache holds half of them on average.
        let past = prompt_tokens + decoded.div_ceil(2);
        let token_bytes = token_bytes(config, precision, weight_bytes, past);
        let bandwidth = device.bandwidth(token_bytes);
        let decode_us = each_us(decode, decoded);
        let planned_bytes =
            planned_bytes(device, config, generate::capacity(config.max_position_embeddings, 1));
        Self {
            load_ms: ms(load),
            prompt_tokens,
            prefill_ms: ms(prefill),
            first_token_ms: ms(wait + prefill),
            tokens: 1 + later,
            tokens_per_s: (later > 0).then(|| later as f64 / (decode + slide).as_secs_f64()),
            decode_us,
            slide_us: each_us(slide, slid),
            token_bytes,
            bandwidth_bytes_per_s: bandwidth,
            bandwidth_share: bandwidth
                .zip(decode_us)
                .map(|(rate, us)| bandwidth_share(token_bytes, rate, us)),
            planned_bytes,
            peak_bytes: device.peak_bytes(),
        }
    }
}

/// Bytes of every buffer of the memory plan.
fn planned_bytes<D: Device>(device: &D, config: &Config, capacity: Capacity) -> usize {
    let (precision, weight_bytes) = (device.precision(), device.weight_bytes(config.dtype));
    let bytes = |entry: &Entry| match entry.kind {
        Kind::Weight => entry.elements() * weight_bytes,
        _ => entry.bytes(precision),
    };
    plan::plan(config, capacity).iter().map(bytes).sum()
}

/// What a batch came to.
pub struct Generated {
    /// Prompts continued.
    pub prompts: usize,
    /// Of them, at once.
    pub at_once: usize,
    /// Tokens of all texts.
    pub tokens: usize,
    /// The passes over the prompts.
    pub prefill: Duration,
    /// All of it.
    pub time: Duration,
}

/// The figures of a batch.
#[derive(Serialize)]
pub struct BatchStats {
    /// From the program's start to a model ready to run.
    load_ms: f64,
    /// Prompts continued.
    prompts: usize,
    /// Of them, at once.
    at_once: usize,
    /// The passes over the prompts, up to the first tokens' arrival.
    prefill_ms: f64,
    /// Tokens of all texts.
    tokens: usize,
    /// Over all tokens, the passes over the prompts included.
    tokens_per_s: f64,
    /// Bytes of every buffer of the memory plan.
    planned_bytes: usize,
    /// The most that the device held at once, where the backend counts it.
    peak_bytes: Option<u64>,
}

impl BatchStats {
    /// The figures of what was `generated`.
    pub fn new<D: Device>(
        device: &D,
        config: &Config,
        capacity: Capacity,
        load: Duration,
        generated: Generated,
    ) -> Self {
        let Generated { prompts, at_once, tokens, prefill, time } = generated;
        Self {
            load_ms: ms(load),
            prompts,
            at_once,
            prefill_ms: ms(prefill),
            tokens,
            tokens_per_s: tokens as f64 / time.as_secs_f64(),
            planned_bytes: planned_bytes(device, config, capacity),
            peak_bytes: device.peak_bytes(),
        }
    }
}

impl fmt::Display for BatchStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { load_ms, prompts, at_once, prefill_ms, tokens, tokens_per_s, .. } = self;
        write!(
            f,
            "load {load_ms:.1} ms; {prompts} prompts, {at_once} at once, prefill {prefill_ms:.2} ms; "
        )?;
        write!(f, "{tokens} tokens, {tokens_per_s:.1} tokens/s; ")?;
        memory(f, self.planned_bytes, self.peak_bytes)
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { load_ms, prefill_ms, first_token_ms, prompt_tokens, tokens, .. } = self;
        write!(f, "load {load_ms:.1} ms, prefill {prefill_ms:.2} ms ({prompt_tokens} tokens), ")?;
        write!(f, "first token after {first_token_ms:.1} ms; {tokens} tokens")?;
        if let Some(rate) = self.tokens_per_s {
            write!(f, ", {rate:.1} tokens/s")?;
        }
        if let Some(us) = self.decode_us {
            write!(f, ", {us:.1} us a token")?;
        }
        if let (Some(share), Some(rate)) = (self.bandwidth_share, self.bandwidth_bytes_per_s) {
            let (percent, mib, gb) = (share * 100.0, mib(self.token_bytes), rate / 1e9);
            write!(f, " ({percent:.1} % of the bandwidth limit: {mib:.1} MiB a token at {gb:.0} GB/s)")?;
        }
        if let Some(us) = self.slide_us {
            write!(f, ", {us:.1} us a token past the context")?;
        }
        f.write_str("; ")?;
        memory(f, self.planned_bytes, self.peak_bytes)
    }
}

fn memory(f: &mut fmt::Formatter<'_>, planned_bytes: usize, peak_bytes: Option<u64>) -> fmt::Result {
    write!(f, "memory {:.1} MiB planned", mib(planned_bytes))?;
    match peak_bytes {
        Some(bytes) => write!(f, ", {:.1} MiB at most on the device", mib(bytes as usize)),
        None => Ok(()),
    }
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
