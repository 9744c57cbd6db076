//! Generation: the prompts in one pass, then one token after the other, past the end of the context too.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::backend::{Backend, OUTBOX_ROWS};
use crate::error::{Error, Result};
use crate::model::{BURST, Model};
use crate::plan::{Capacity, LogitRows};
use crate::sampling::Sampling;

/// What to generate, for one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The tokens to continue. Of more than the context holds, the last ones count.
    pub prompt: &'a [u32],
    /// Tokens to generate, at least 1.
    pub max_new_tokens: usize,
    /// How each is picked.
    pub sampling: Sampling,
}

/// How long the parts of a generation took. A token is one for each sequence of the batch that still wants one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// The pass over the prompts, up to the first tokens' arrival.
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

/// The capacity for requests of these lengths of prompt and numbers of tokens, `batch` at once: passes no longer than they take.
#[must_use]
pub fn capacity_for(
    context: usize,
    batch: usize,
    requests: impl Iterator<Item = (usize, usize)>,
) -> Capacity {
    // The last token is sampled, and never run.
    let slides = |(prompt, new): (usize, usize)| prompt.saturating_add(new) - 1 > context;
    let longest = |request: (usize, usize)| if slides(request) { context } else { request.0 };
    Capacity { time: requests.map(longest).max().unwrap_or(context), ..capacity(context, batch) }
}

/// Generates with a model on its backend, any number of times. Which tokens come depends neither on the look-ahead nor, but for rounding, on
/// what else is in the batch.
///
/// Past the context the window slides as in nanoGPT: the last P tokens are run anew for every token, at positions 0 to P − 1. In a batch the
/// cache first serves whatever it can to every sequence, those that are full or done idling; then the windows of those that want more slide
/// together.
pub struct Generator<'a, B: Backend> {
    backend: &'a mut B,
    model: &'a mut Model<B>,
    lookahead: usize,
    /// As many as the model's batch.
    sequences: Vec<Sequence>,
    /// `[B, T]`: the windows as the model takes them.
    windows: Vec<u32>,
    /// `[B]`: the sampled tokens of each sequence, as the model takes it.
    steps: Vec<u32>,
    /// `[B]`: the tokens just taken.
    row: Vec<u32>,
}

/// Where a sequence stands.
#[derive(Default)]
struct Sequence {
    /// The tokens that the next window may need.
    history: Vec<u32>,
    /// Tokens that came.
    sampled: usize,
    /// Tokens that are still wanted.
    wanted: usize,
    /// Positions that the cache has left.
    room: usize,
}

impl Sequence {
    /// A new prompt. Reserves what its tokens will take, so that none allocates.
    fn start(&mut self, prompt: &[u32], wanted: usize, context: usize) {
        self.history.clear();
        self.history.reserve(2 * context);
        self.history.extend_from_slice(&prompt[prompt.len().saturating_sub(context)..]);
        (self.sampled, self.wanted, self.room) = (0, wanted, context);
    }

    /// The tokens of the next window: the last ones, as many as the context holds. One that wants no more is as short as can be.
    fn window(&self, context: usize) -> &[u32] {
        let length = if self.wanted > 0 { self.history.len().min(context) } else { 1 };
        &self.history[self.history.len() - length..]
    }

    /// Tokens that the cache can still serve.
    fn servable(&self) -> usize {
        self.wanted.min(self.room)
    }

    /// Takes a token in. The history stays below twice the context.
    fn push(&mut self, token: u32, context: usize) {
        if self.history.len() == 2 * context {
            self.history.drain(..context);
        }
        self.history.push(token);
        self.sampled += 1;
        self.wanted -= 1;
    }
}

impl<'a, B: Backend> Generator<'a, B> {
    /// A generator over a model made for [`capacity`] of its context and `batch`, or [`capacity_for`] what will be asked of it. It keeps up
    /// to `lookahead` decode steps under way: [`LOOKAHEAD`] on a GPU, 1 where the backend computes while it is called.
    ///
    /// # Panics
    /// Where `lookahead` or `batch` is 0, or `lookahead` is more than the outbox holds.
    pub fn new(backend: &'a mut B, model: &'a mut Model<B>, batch: usize, lookahead: usize) -> Self {
        assert!(
            (1..=OUTBOX_ROWS).contains(&lookahead),
            "a look-ahead of {lookahead}, expected 1 to {OUTBOX_ROWS}"
        );
        assert!(batch > 0, "a batch has at least one sequence");
        let sequences = (0..batch).map(|_| Sequence::default()).collect();
        let (steps, row) = (Vec::with_capacity(batch), Vec::with_capacity(batch));
        Self { backend, model, lookahead, sequences, windows: Vec::new(), steps, row }
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

    /// Continues every prompt and calls `on_token` with each new token and the number of the request that it belongs to, until that request
    /// has all of its tokens, or the call breaks, which ends this one alone. At most as many requests as the batch has sequences; each gets
    /// the tokens that it would get alone.
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty prompt, no tokens to generate or a sampling rule without a meaning; otherwise the device's.
    pub fn generate(
        &mut self,
        requests: &[Request<'_>],
        mut on_token: impl FnMut(usize, u32) -> ControlFlow<()>,
    ) -> Result<Timings> {
        self.start(requests)?;
        let began = Instant::now();
        self.run_windows()?;
        self.take(0, &mut on_token)?;
        let prefill = began.elapsed();
        let began = Instant::now();
        let decoded = self.decode(&mut on_token)?;
        let decode = began.elapsed();
        let began = Instant::now();
        let slid = self.slide(&mut on_token)?;
        Ok(Timings { prefill, decoded, decode, slid, slide: began.elapsed() })
    }

    /// Checks the requests and makes the sequences of them. What is left of the batch idles, with any token as its prompt.
    fn start(&mut self, requests: &[Request<'_>]) -> Result<()> {
        let (batch, context) = (self.sequences.len(), self.context());
        assert!((1..=batch).contains(&requests.len()), "{} requests for a batch of {batch}", requests.len());
        for request in requests {
            self.check(request)?;
        }
        let idle = Request { prompt: &[0], max_new_tokens: 0, sampling: Sampling::GREEDY };
        let all = || requests.iter().copied().chain(std::iter::repeat(idle)).take(batch);
        for (sequence, request) in self.sequences.iter_mut().zip(all()) {
            sequence.start(request.prompt, request.max_new_tokens, context);
        }
        self.windows.clear();
        self.windows.reserve(batch * context);
        let rules: Vec<Sampling> = all().map(|request| request.sampling).collect();
        self.model.set_sampling(self.backend, &rules)
    }

    fn check(&self, request: &Request<'_>) -> Result<()> {
        request.sampling.checked()?;
        let refused = |name, problem| Err(Error::Argument { name, problem });
        if request.prompt.is_empty() {
            return refused("the prompt", "is empty, expected at least one token".into());
        }
        if request.max_new_tokens == 0 {
            return refused("max-new-tokens", "is 0, expected at least 1".into());
        }
        let vocab = self.model.config().vocab_size;
        match request.prompt.iter().find(|&&id| id as usize >= vocab) {
            None => Ok(()),
            Some(id) => {
                let problem =
                    format!("holds token {id}, expected tokens below {vocab}, the model's vocab_size");
                refused("the prompt", problem)
            }
        }
    }

    /// Runs every sequence's window from position 0 on, the shorter ones padded at their ends, and samples each one's next token.
    fn run_windows(&mut self) -> Result<()> {
        let context = self.context();
        let Self { backend, model, sequences, windows, steps, .. } = self;
        let length = |sequence: &Sequence| sequence.window(context).len();
        let time = sequences.iter().map(length).max().unwrap_or(0);
        windows.clear();
        steps.clear();
        for (index, sequence) in sequences.iter_mut().enumerate() {
            windows.extend_from_slice(sequence.window(context));
            windows.resize((index + 1) * time, 0);
            steps.push(sequence.sampled as u32);
            sequence.room = context - length(sequence);
        }
        model.rewind(backend, steps)?;
        model.forward_padded(backend, windows, sequences.iter().map(length))?;
        model.sample(backend)
    }

    /// Brings the tokens that the cache can serve, keeping decode steps under way, and says how many steps that took.
    fn decode(&mut self, on_token: &mut impl FnMut(usize, u32) -> ControlFlow<()>) -> Result<usize> {
        // Of long pieces of work, one is done while the next waits.
        let at_once = self.model.decode_stride(self.backend);
        let (stride, ahead) =
            at_once.map_or((BURST, self.lookahead), |stride| (stride, stride.saturating_mul(2)));
        let (mut decoded, mut issued) = (0, 0);
        loop {
            // A sequence that ends early may leave less to do than was issued: the next window's rewind drops the rest.
            let left = self.sequences.iter().map(Sequence::servable).max().unwrap_or(0);
            if left == 0 {
                return Ok(decoded);
            }
            let count = decoded + left;
            // Two rounds a token until the look-ahead is reached: the first token shown does not wait for a whole queue.
            for _ in 0..2 {
                let steps = stride.min(count.saturating_sub(issued)).min(ahead);
                if steps > 0 && issued + steps - decoded <= ahead {
                    self.model.decode(self.backend, steps)?;
                    issued += steps;
                }
            }
            self.take(1, on_token)?;
            decoded += 1;
        }
    }

    /// Brings what is still wanted by sliding windows, and says how many it took.
    fn slide(&mut self, on_token: &mut impl FnMut(usize, u32) -> ControlFlow<()>) -> Result<usize> {
        let mut slid = 0;
        while self.sequences.iter().any(|sequence| sequence.wanted > 0) {
            self.run_windows()?;
            self.take(0, on_token)?;
            slid += 1;
        }
        Ok(slid)
    }

    /// Waits for the oldest row of tokens under way and hands on those of sequences that want one and whose cache had the `positions` that it
    /// took: 1 in a decode step, 0 more than the window's in a pass over windows.
    fn take(
        &mut self,
        positions: usize,
        on_token: &mut impl FnMut(usize, u32) -> ControlFlow<()>,
    ) -> Result<()> {
        self.row.clear();
        self.model.take(self.backend, &mut self.row)?;
        assert_eq!(self.row.len(), self.sequences.len(), "the model was made for the generator's batch");
        let context = self.context();
        for (index, (sequence, &token)) in self.sequences.iter_mut().zip(&self.row).enumerate() {
            if sequence.wanted > 0 && sequence.room >= positions {
                sequence.room -= positions;
                sequence.push(token, context);
                if on_token(index, token).is_break() {
                    sequence.wanted = 0;
                }
            }
        }
        Ok(())
    }

    fn context(&self) -> usize {
        self.model.config().max_position_embeddings
    }
}

#[cfg(test)]
mod tests;
