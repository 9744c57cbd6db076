//! Times of whole passes and generations. Every time ends when the last token is on the host.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use touchstone_runtime::Result;
use touchstone_runtime::device::Device;
use touchstone_runtime::generate::{Generator, Request};
use touchstone_runtime::model::Model;
use touchstone_runtime::plan::{Capacity, LogitRows, token_bytes};
use touchstone_runtime::sampling::Sampling;

use super::args::Measure;
use super::row::Row;
use super::subject::{Subject, pass_flops};

/// The token that generations begin with.
pub const PROMPT: u32 = 0;
/// How timed tokens are picked, here and by peers.
pub const SAMPLING: Sampling = Sampling { temperature: 0.8, top_k: 40, top_p: 1.0, seed: 1 };
/// Untimed runs before the timed ones, which record what is replayed and bring a device up to speed.
pub const WARM_UP: usize = 3;
/// Prompts to time, of those that fit the context.
const PROMPT_LENGTHS: [usize; 4] = [16, 64, 256, 1024];
/// Tokens of a stretch of the context, where it holds two of them.
const STRETCH: usize = 100;
/// At most so many stretches before the last are shown.
const STRETCHES_MAX: usize = 9;

/// Measurements of the bandwidth, of which the best counts.
const BANDWIDTH_LOOKS: usize = 5;

/// What a measurement needs to know.
pub struct Bench<'a, D: Device> {
    /// Where it runs.
    pub device: &'a mut D,
    /// What runs.
    pub subject: &'a Subject,
    /// Tokens of a generation.
    pub new_tokens: usize,
    /// Timed runs.
    pub repeats: usize,
}

impl<D: Device> Bench<'_, D> {
    /// Generation of one sequence: µs a token.
    pub fn decode(&mut self) -> Result<Row> {
        let times = self.generations(1)?;
        Ok(Row::new(Measure::Decode, self.size(), "us a token", &times, self.new_tokens).tokens(1))
    }

    /// Bytes that a token of [`Bench::decode`] must read. Over these tokens, the cache holds half of them on average.
    pub fn token_bytes(&self) -> usize {
        let config = &self.subject.config;
        let weight_bytes = self.device.weight_bytes(config.dtype);
        token_bytes(config, self.device.precision(), weight_bytes, 1 + self.new_tokens / 2)
    }

    /// Generation of several sequences at once: µs a step, which gives a token to each.
    pub fn batch(&mut self, batch: usize) -> Result<Row> {
        let times = self.generations(batch)?;
        let at = format!("batch {batch}, {}", self.size());
        Ok(Row::new(Measure::Batch, at, "us a step", &times, self.new_tokens).tokens(batch))
    }

    /// Generation up to the end of the context: µs a token by stretches of it, the last stretch set against the first.
    pub fn context(&mut self) -> Result<Vec<Row>> {
        let context = self.subject.config.max_position_embeddings;
        let mut model = self.model(1, 1)?;
        let mut generator = Generator::new(self.device, &mut model, 1, D::LOOKAHEAD);
        let request = Request { prompt: &[PROMPT], max_new_tokens: context, sampling: SAMPLING };
        let mut runs = Vec::new();
        for _ in 0..WARM_UP + self.repeats {
            let mut arrivals = Vec::with_capacity(context);
            generator.generate(&[request], |_, _| {
                arrivals.push(Instant::now());
                ControlFlow::Continue(())
            })?;
            runs.push(arrivals);
        }
        let (width, starts) = stretches(context - 1);
        let mut rows: Vec<Row> = starts
            .iter()
            .map(|&start| {
                let time = |run: &Vec<Instant>| run[start + width] - run[start];
                let times: Vec<Duration> = runs[WARM_UP..].iter().map(time).collect();
                let at = format!("positions {} to {}", start + 1, start + width);
                Row::new(Measure::Context, at, "us a token", &times, width).tokens(1)
            })
            .collect();
        if let [first, .., last] = &mut rows[..] {
            last.times_first = Some(last.median / first.median);
        }
        Ok(rows)
    }

    /// The pass over prompts of several lengths, up to the first token's arrival.
    pub fn prefill(&mut self) -> Result<Vec<Row>> {
        let context = self.subject.config.max_position_embeddings;
        let mut lengths: Vec<usize> =
            PROMPT_LENGTHS.into_iter().filter(|&length| length <= context).collect();
        if lengths.is_empty() {
            lengths.push(context);
        }
        let vocab = self.subject.config.vocab_size as u32;
        let longest = lengths[lengths.len() - 1];
        let mut model = self.model(1, longest)?;
        let mut generator = Generator::new(self.device, &mut model, 1, D::LOOKAHEAD);
        let mut rows = Vec::new();
        for length in lengths {
            let prompt: Vec<u32> = (0..length as u32).map(|i| i % vocab).collect();
            let request = Request { prompt: &prompt, max_new_tokens: 1, sampling: SAMPLING };
            let times = timed(self.repeats, || {
                generator.generate(&[request], |_, _| ControlFlow::Continue(())).map(drop)
            })?;
            let row = Row::new(Measure::Prefill, format!("{length} tokens"), "us a prompt", &times, 1);
            let row = row.tokens(length).flops(pass_flops(&self.subject.config, length));
            rows.push(Row { prompt: Some(length), ..row });
        }
        Ok(rows)
    }

    /// Whole generations, the pass over the prompt of one token included.
    fn generations(&mut self, batch: usize) -> Result<Vec<Duration>> {
        let mut model = self.model(batch, 1)?;
        self.generate(&mut model, batch)
    }

    /// The same, by a model that is there.
    pub(super) fn generate(&mut self, model: &mut Model<D>, batch: usize) -> Result<Vec<Duration>> {
        let mut generator = Generator::new(self.device, model, batch, D::LOOKAHEAD);
        // Each with a seed of its own: texts of one seed would be the same.
        let request = |seed| Request {
            prompt: &[PROMPT],
            max_new_tokens: self.new_tokens,
            sampling: Sampling { seed, ..SAMPLING },
        };
        let requests: Vec<_> = (0..batch as u64).map(request).collect();
        timed(self.repeats, || generator.generate(&requests, |_, _| ControlFlow::Continue(())).map(drop))
    }

    pub(super) fn model(&mut self, batch: usize, time: usize) -> Result<Model<D>> {
        let capacity = Capacity { batch, time, logits: LogitRows::Last };
        Model::new(self.device, &self.subject.config, self.subject.source(), capacity)
    }

    pub(super) fn size(&self) -> String {
        format!("{} tokens", self.new_tokens)
    }
}

/// Wall-clock times of `repeats` runs after a few untimed ones.
///
/// # Errors
/// Those of `run`.
fn timed(repeats: usize, mut run: impl FnMut() -> Result<()>) -> Result<Vec<Duration>> {
    for _ in 0..WARM_UP {
        run()?;
    }
    (0..repeats)
        .map(|_| {
            let began = Instant::now();
            run()?;
            Ok(began.elapsed())
        })
        .collect()
}

/// Bytes a second that the device can read of a working set of this many: the best of several looks, since another program may be on the
/// CPU during one.
pub fn bandwidth<D: Device>(device: &D, working_set_bytes: usize) -> Option<f64> {
    (0..BANDWIDTH_LOOKS).filter_map(|_| device.bandwidth(working_set_bytes)).reduce(f64::max)
}

/// Width and starts of stretches over `count` tokens that do not overlap: from the first on, and the last.
fn stretches(count: usize) -> (usize, Vec<usize>) {
    let width = STRETCH.min(count / 2).max(1);
    let before_last = (count / width).saturating_sub(1);
    let step = width * before_last.div_ceil(STRETCHES_MAX).max(1);
    let last = count.checked_sub(width);
    (width, (0..before_last * width).step_by(step).chain(last).collect())
}

#[cfg(test)]
mod tests {
    use super::stretches;

    /// Without this, a stretch could reach past the tokens that there are, or the ratio compare the first with itself.
    #[test]
    fn stretches_begin_at_the_first_token_and_end_at_the_last() {
        assert_eq!(stretches(255), (100, vec![0, 155]));
        assert_eq!(stretches(300), (100, vec![0, 100, 200]));
        assert_eq!(stretches(11), (5, vec![0, 6]));
        assert_eq!((stretches(2), stretches(1), stretches(0)), ((1, vec![0, 1]), (1, vec![0]), (1, vec![])));
        for count in (2..5000).step_by(7) {
            let (width, starts) = stretches(count);
            assert!(starts.len() <= 10 && starts[0] == 0 && starts[starts.len() - 1] + width == count);
            assert!(starts.windows(2).all(|pair| pair[0] + width <= pair[1]), "{count}: {starts:?}");
        }
    }
}
