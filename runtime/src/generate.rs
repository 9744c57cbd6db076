//! Generation: the prompt in one pass, then one token after the other, past the end of the context too.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::backend::{Backend, OUTBOX_ROWS};
use crate::error::{Error, Result};
use crate::model::{BURST, Model};
use crate::plan::{Capacity, LogitRows};
use crate::sampling::Sampling;

/// What to generate.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// `[B, T]`: the tokens to continue. Of more than the context holds, the last ones count.
    pub prompt: &'a [u32],
    /// Tokens to generate for each sequence, at least 1.
    pub max_new_tokens: usize,
    /// How each is picked.
    pub sampling: Sampling,
}

/// How long the parts of a generation took. A token is one for each sequence of the batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// The pass over the prompt, up to the first token's arrival.
    pub prefill: Duration,
    /// Tokens after the first that the cache served.
    pub decoded: usize,
    /// The time from the first token to the last of these.
    pub decode: Duration,
    /// Tokens past the context, each a pass over a whole window.
    pub slid: usize,
    /// The time they took.
    pub slide: Duration,
}

/// Decode steps that may be under way on a device that works while the host goes on.
pub const LOOKAHEAD: usize = 32;

/// The capacity that a model needs to generate for `batch` sequences: whole windows, logits of their last position.
#[must_use]
pub fn capacity(context: usize, batch: usize) -> Capacity {
    Capacity { batch, time: context, logits: LogitRows::Last }
}

/// Generates with a model on its backend, any number of times. Which tokens come does not depend on the look-ahead.
///
/// Past the context the window slides as in nanoGPT: the last P tokens are run anew for every token, at positions 0 to P − 1.
pub struct Generator<'a, B: Backend> {
    backend: &'a mut B,
    model: &'a mut Model<B>,
    lookahead: usize,
    batch: usize,
    /// `[B][…]`: the tokens that the next window may need.
    history: Vec<Vec<u32>>,
    /// `[B, P]`: the window as the model takes it.
    window: Vec<u32>,
    /// `[B]`: the tokens just taken.
    row: Vec<u32>,
}

impl<'a, B: Backend> Generator<'a, B> {
    /// A generator over a model made for [`capacity`] of its context and `batch`, keeping up to `lookahead` decode steps under way:
    /// [`LOOKAHEAD`] on a GPU, 1 where the backend computes while it is called.
    ///
    /// # Panics
    /// Where `lookahead` or `batch` is 0, or `lookahead` is more than the outbox holds.
    pub fn new(backend: &'a mut B, model: &'a mut Model<B>, batch: usize, lookahead: usize) -> Self {
        assert!(
            (1..=OUTBOX_ROWS).contains(&lookahead),
            "a look-ahead of {lookahead}, expected 1 to {OUTBOX_ROWS}"
        );
        assert!(batch > 0, "a batch has at least one sequence");
        Self {
            backend,
            model,
            lookahead,
            batch,
            history: vec![Vec::new(); batch],
            window: Vec::new(),
            row: Vec::with_capacity(batch),
        }
    }

    /// The backend.
    #[must_use]
    pub fn backend(&self) -> &B {
        self.backend
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Model<B> {
        self.model
    }

    /// Continues the prompt and calls `on_tokens` with each new `[B]` tokens, until it breaks or all have come.
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty prompt, no tokens to generate or a sampling rule without a meaning; otherwise the device's.
    pub fn generate(
        &mut self,
        request: &Request<'_>,
        mut on_tokens: impl FnMut(&[u32]) -> ControlFlow<()>,
    ) -> Result<Timings> {
        request.sampling.checked()?;
        self.start(request)?;
        let began = Instant::now();
        let mut timings = Timings::default();
        self.run_window(0)?;
        self.take()?;
        timings.prefill = began.elapsed();
        if on_tokens(&self.row).is_break() {
            return Ok(timings);
        }
        let from_cache = (request.max_new_tokens - 1).min(self.context() - self.model.past());
        let began = Instant::now();
        let flow = self.decode(from_cache, &mut timings.decoded, &mut on_tokens)?;
        timings.decode = began.elapsed();
        if flow.is_continue() {
            let began = Instant::now();
            let tokens = 1 + timings.decoded..request.max_new_tokens;
            timings.slid = self.slide(tokens, &mut on_tokens)?;
            timings.slide = began.elapsed();
        }
        Ok(timings)
    }

    /// Checks the request and makes the first window and the history of it.
    fn start(&mut self, request: &Request<'_>) -> Result<()> {
        if request.prompt.is_empty() {
            return Err(Error::Argument {
                name: "the prompt",
                problem: "is empty, expected at least one token".into(),
            });
        }
        if request.max_new_tokens == 0 {
            return Err(Error::Argument {
                name: "max-new-tokens",
                problem: "is 0, expected at least 1".into(),
            });
        }
        let time = request.prompt.len() / self.batch;
        assert_eq!(time * self.batch, request.prompt.len(), "a prompt is [B, T] for the generator's batch");
        let vocab = self.model.config().vocab_size;
        if let Some(id) = request.prompt.iter().find(|&&id| id as usize >= vocab) {
            let problem = format!("holds token {id}, expected tokens below {vocab}, the model's vocab_size");
            return Err(Error::Argument { name: "the prompt", problem });
        }
        // Reserved here, so that no token allocates; `take` keeps each history below twice the context.
        let context = self.context();
        for (history, prompt) in self.history.iter_mut().zip(request.prompt.chunks_exact(time)) {
            history.clear();
            history.reserve(2 * context);
            history.extend_from_slice(&prompt[time.saturating_sub(context)..]);
        }
        self.window.clear();
        self.window.reserve(self.batch * context);
        self.model.set_sampling(self.backend, &request.sampling)
    }

    /// Runs the last tokens of the history from position 0 on, as many as the context holds, and samples pick number `step`.
    fn run_window(&mut self, step: usize) -> Result<()> {
        let time = self.history[0].len().min(self.context());
        self.window.clear();
        for history in &self.history {
            self.window.extend_from_slice(&history[history.len() - time..]);
        }
        self.model.rewind(self.backend, step as u32)?;
        self.model.forward(self.backend, &self.window)?;
        self.model.sample(self.backend, time)
    }

    /// Generates `count` tokens from the cache, counted in `decoded`, keeping decode steps under way.
    fn decode(
        &mut self,
        count: usize,
        decoded: &mut usize,
        on_tokens: &mut impl FnMut(&[u32]) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        // One piece of work needs no look-ahead: the device goes on by itself.
        let at_once = self.model.decodes_at_once(self.backend);
        let (stride, ahead) = if at_once { (count, count) } else { (BURST, self.lookahead) };
        let mut issued = 0;
        let mut flow = ControlFlow::Continue(());
        while *decoded < count && flow.is_continue() {
            // Two rounds a token until the look-ahead is reached: the first token shown does not wait for a whole queue.
            for _ in 0..2 {
                let steps = stride.min(count - issued).min(ahead);
                if steps > 0 && issued + steps - *decoded <= ahead {
                    self.model.decode(self.backend, steps)?;
                    issued += steps;
                }
            }
            self.take()?;
            *decoded += 1;
            flow = on_tokens(&self.row);
        }
        // After a break, steps are under way whose tokens nobody takes: the next window's rewind drops them.
        Ok(flow)
    }

    /// Generates tokens number `tokens` by sliding windows, and says how many came.
    fn slide(
        &mut self,
        tokens: std::ops::Range<usize>,
        on_tokens: &mut impl FnMut(&[u32]) -> ControlFlow<()>,
    ) -> Result<usize> {
        let (first, count) = (tokens.start, tokens.len());
        for step in tokens {
            self.run_window(step)?;
            self.take()?;
            if on_tokens(&self.row).is_break() {
                return Ok(step + 1 - first);
            }
        }
        Ok(count)
    }

    /// Waits for the oldest tokens under way: they are `row` then, and part of the history.
    fn take(&mut self) -> Result<()> {
        self.row.clear();
        self.model.take(self.backend, &mut self.row)?;
        assert_eq!(self.row.len(), self.batch, "the model was made for the generator's batch");
        let context = self.context();
        for (history, &token) in self.history.iter_mut().zip(&self.row) {
            if history.len() == 2 * context {
                history.drain(..context);
            }
            history.push(token);
        }
        Ok(())
    }

    fn context(&self) -> usize {
        self.model.config().max_position_embeddings
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;
    use crate::host::Host;
    use crate::weights::RandomWeights;

    const CONTEXT: usize = 9;
    const HOT: Sampling = Sampling { temperature: 1.3, top_k: 0, top_p: 1.0, seed: 5 };

    fn config() -> Config {
        let text = format!(
            r#"{{"vocab_size": 31, "max_position_embeddings": {CONTEXT}, "hidden_size": 12, "num_attention_heads": 3,
                "intermediate_size": 20, "num_hidden_layers": 2, "layer_norm_eps": 1e-5, "hidden_act": "gelu",
                "tie_word_embeddings": true, "model_type": "touchstone_gpt", "dtype": "float32"}}"#
        );
        Config::parse(&text, Path::new("test")).unwrap()
    }

    fn with_model<T>(batch: usize, body: impl FnOnce(&mut Host<f32>, &mut Model<Host<f32>>) -> T) -> T {
        let mut host = Host::new();
        let capacity = capacity(CONTEXT, batch);
        let mut model = Model::new(&mut host, &config(), &RandomWeights::new(3), capacity).unwrap();
        body(&mut host, &mut model)
    }

    fn tokens(
        generator: &mut Generator<'_, Host<f32>>,
        prompt: &[u32],
        n: usize,
        sampling: Sampling,
    ) -> Vec<u32> {
        let mut tokens = Vec::new();
        let request = Request { prompt, max_new_tokens: n, sampling };
        let timings = generator
            .generate(&request, |row| {
                tokens.extend_from_slice(row);
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(1 + timings.decoded + timings.slid, n, "every token is counted once");
        tokens
    }

    /// Generation as it is defined: for every token, a pass over the last P tokens from position 0, and nothing else.
    fn by_definition(prompt: &[u32], n: usize, sampling: Sampling) -> Vec<u32> {
        with_model(1, |host, model| {
            let mut all = prompt.to_vec();
            model.set_sampling(host, &sampling).unwrap();
            for step in 0..n {
                let window = all[all.len().saturating_sub(CONTEXT)..].to_vec();
                model.rewind(host, step as u32).unwrap();
                model.forward(host, &window).unwrap();
                model.sample(host, window.len()).unwrap();
                model.take(host, &mut all).unwrap();
            }
            all.split_off(prompt.len())
        })
    }

    /// Without this, the cache, the slide at the context's end, the crop of a long prompt or the look-ahead could change the text.
    #[test]
    fn tokens_are_those_of_the_definition_at_every_lookahead() {
        let long: Vec<u32> = (0..40).map(|i| (i * 7 + 1) % 31).collect();
        for prompt in
            [&long[..1], &long[..4], &long[..CONTEXT - 1], &long[..CONTEXT], &long[..CONTEXT + 1], &long]
        {
            for sampling in [HOT, Sampling::GREEDY] {
                let expected = by_definition(prompt, 45, sampling);
                for lookahead in [1, 2, 3, LOOKAHEAD, OUTBOX_ROWS] {
                    let found = with_model(1, |host, model| {
                        tokens(&mut Generator::new(host, model, 1, lookahead), prompt, 45, sampling)
                    });
                    assert_eq!(found, expected, "prompt of {}, look-ahead {lookahead}", prompt.len());
                }
            }
        }
    }

    /// Without this, a stopped generation could leave tokens behind that the next one shows as its own.
    #[test]
    fn a_stop_leaves_nothing_behind() {
        with_model(1, |host, model| {
            let mut generator = Generator::new(host, model, 1, 4);
            let expected = tokens(&mut generator, &[1, 2], 20, HOT);
            for stop in 1..20 {
                let mut seen = Vec::new();
                let request = Request { prompt: &[1, 2], max_new_tokens: 20, sampling: HOT };
                let timings = generator
                    .generate(&request, |row| {
                        seen.extend_from_slice(row);
                        if seen.len() == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                    })
                    .unwrap();
                assert_eq!(seen, expected[..stop]);
                assert_eq!(1 + timings.decoded + timings.slid, stop);
                assert_eq!(tokens(&mut generator, &[1, 2], 20, HOT), expected, "after a stop at {stop}");
            }
        });
    }

    /// Without this, the sequences of a batch could mix, in the prompt or past the context.
    #[test]
    fn the_sequences_of_a_batch_do_not_mix() {
        let prompts = [[3, 1, 4], [2, 7, 1]];
        let both = with_model(2, |host, model| {
            tokens(&mut Generator::new(host, model, 2, 4), prompts.as_flattened(), 20, Sampling::GREEDY)
        });
        for (row, prompt) in prompts.iter().enumerate() {
            let alone: Vec<u32> = both.iter().skip(row).step_by(2).copied().collect();
            assert_eq!(alone, by_definition(prompt, 20, Sampling::GREEDY), "row {row}");
        }
    }

    /// Without this, a wrong request would panic inside the model, or fill the logits with NaN.
    #[test]
    fn a_wrong_request_is_refused() {
        with_model(1, |host, model| {
            let mut generator = Generator::new(host, model, 1, 1);
            let mut problem = |prompt: &[u32], max_new_tokens, temperature| {
                let request = Request { prompt, max_new_tokens, sampling: Sampling { temperature, ..HOT } };
                generator.generate(&request, |_| panic!("nothing may be generated")).unwrap_err().to_string()
            };
            assert_eq!(problem(&[], 1, 1.0), "the prompt: is empty, expected at least one token");
            assert_eq!(problem(&[1], 0, 1.0), "max-new-tokens: is 0, expected at least 1");
            let foreign = "the prompt: holds token 31, expected tokens below 31, the model's vocab_size";
            assert_eq!(problem(&[1, 31], 1, 1.0), foreign);
            assert!(problem(&[1], 1, -1.0).starts_with("temperature: is -1"));
        });
    }
}
