//! The GPT itself, written once over the [`Backend`] trait.

use crate::backend::{AttentionShape, Backend, CURSOR_LEN, DecodeState, Rows, Step, Weights};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::modules::{AttentionSublayer, Head, LayerCache, MlpSublayer, Norm, Scratch};
use crate::plan::{self, Capacity, Entry, LogitRows};
use crate::sampling::Sampling;
use crate::taps::{Tap, tap};
use crate::weights::WeightSource;

/// Decode steps that are recorded as one: replaying a recording has a cost of its own, which these share.
pub const BURST: usize = 8;

/// A GPT with its weights, its KV cache and every buffer a forward pass needs. After construction nothing allocates.
pub struct Model<B: Backend> {
    config: Config,
    capacity: Capacity,
    weights: Weights<B>,
    state: State<B>,
    /// Runs many decode steps at once, where the backend has something for this model.
    decoder: Option<B::Decoder>,
}

/// What changes while the model runs.
struct State<B: Backend> {
    caches: Vec<LayerCache<B>>,
    scratch: Scratch<B>,
    tokens: B::Ids,
    cursor: B::Ids,
    residual: B::Wide,
    logits: B::Wide,
    outbox: B::Outbox,
    /// Of one decode step, and of [`BURST`].
    recordings: [B::Recording; 2],
    /// The size T of the last pass, and its recording where there is one.
    window: (usize, B::Recording),
    /// What `cursor` holds, or will where it is not `written`.
    places: Vec<[u32; CURSOR_LEN]>,
    /// Whether `cursor` holds what `places` does.
    written: bool,
    /// Rows of tokens sampled and not taken yet.
    outstanding: usize,
}

impl<B: Backend> Model<B> {
    /// Loads the weights and allocates every buffer of [`plan::plan`].
    ///
    /// # Errors
    /// A missing or misshapen tensor, or out of memory.
    pub fn new(b: &mut B, config: &Config, source: &dyn WeightSource, capacity: Capacity) -> Result<Self> {
        let weights = Weights::load(b, config, source)?;
        let state = State::new(b, config, capacity)?;
        let decoder = b.decoder(config, &weights, capacity)?;
        Ok(Self { config: config.clone(), capacity, weights, state, decoder })
    }

    /// The model's dimensions.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Cached positions of a sequence of the batch.
    #[must_use]
    pub fn past(&self, sequence: usize) -> usize {
        self.state.places[sequence][0] as usize
    }

    /// Forgets the cache and every token not taken yet, so that the next pass starts at position 0; `steps: [B]` are the numbers of tokens
    /// that each sequence has sampled so far, which seed its next pick.
    ///
    /// # Errors
    /// The device failed.
    pub fn rewind(&mut self, b: &mut B, steps: &[u32]) -> Result<()> {
        assert_eq!(steps.len(), self.capacity.batch, "a step for each sequence");
        let mut dropped = Vec::new();
        while self.state.outstanding > 0 {
            self.take(b, &mut dropped)?;
        }
        for (place, &step) in self.state.places.iter_mut().zip(steps) {
            *place = [0, step, 1];
        }
        self.state.written = false;
        Ok(())
    }

    /// Runs `tokens: [B, T]`, appended to what the cache holds, and leaves logits in [`Model::read_logits`].
    ///
    /// Cursors move on with [`Model::sample`] or [`Model::advance`], not here.
    ///
    /// # Errors
    /// More positions than the context or the capacity holds.
    pub fn forward(&mut self, b: &mut B, tokens: &[u32]) -> Result<()> {
        let time = tokens.len() / self.capacity.batch;
        self.forward_padded(b, tokens, (0..self.capacity.batch).map(|_| time))
    }

    /// [`Model::forward`] of sequences of unequal lengths: of each row of `tokens` the first so many tokens count, 1 to T; behind them may
    /// stand any token of the vocabulary.
    ///
    /// # Errors
    /// More positions than the context or the capacity holds.
    pub fn forward_padded(
        &mut self,
        b: &mut B,
        tokens: &[u32],
        lengths: impl ExactSizeIterator<Item = usize>,
    ) -> Result<()> {
        let step = Step { batch: self.capacity.batch, time: tokens.len() / self.capacity.batch };
        assert_eq!(step.rows(), tokens.len(), "tokens are [B, T] for the model's batch");
        assert_eq!(lengths.len(), step.batch, "a length for each sequence");
        for (place, length) in self.state.places.iter_mut().zip(lengths) {
            assert!((1..=step.time).contains(&length), "a length of {length} in a pass of {}", step.time);
            let (past, needed) = (place[0] as usize, place[0] as usize + length);
            if needed > self.config.max_position_embeddings || step.time > self.capacity.time {
                let context = self.config.max_position_embeddings.min(past + self.capacity.time);
                return Err(Error::ContextFull { needed, context });
            }
            self.state.written &= place[2] == number(length);
            place[2] = number(length);
        }
        b.write_ids(&mut self.state.tokens, tokens)?;
        self.state.write_cursor(b)?;
        self.repeated_pass(b, step)
    }

    /// Moves the cursors past the positions just run, without sampling.
    pub fn advance(&mut self) {
        for [past, _, length] in &mut self.state.places {
            (*past, *length) = (*past + *length, 1);
        }
        self.state.written = false;
    }

    /// Sets the rules that tokens are picked by from now on, `[B]`; a new model is greedy.
    ///
    /// # Errors
    /// The device failed.
    pub fn set_sampling(&mut self, b: &mut B, sampling: &[Sampling]) -> Result<()> {
        assert_eq!(sampling.len(), self.capacity.batch, "a rule for each sequence");
        b.set_sampling(&mut self.state.outbox, sampling)
    }

    /// Picks the next token of each sequence from the last pass's logits and moves its cursor past the pass.
    ///
    /// # Errors
    /// The device failed.
    pub fn sample(&mut self, b: &mut B) -> Result<()> {
        self.state.sample(b, self.capacity.batch, self.config.vocab_size)?;
        self.state.count(1);
        Ok(())
    }

    /// What runs many decode steps at once, if anything does.
    #[must_use]
    pub fn decoder(&self) -> Option<&B::Decoder> {
        self.decoder.as_ref()
    }

    /// Whether [`Model::decode`] runs many steps as one piece of work, and how many it should be asked for at most.
    #[must_use]
    pub fn decode_stride(&self, b: &mut B) -> Option<usize> {
        self.decoder.as_ref().filter(|_| b.taps().at_once()).map(B::decode_stride)
    }

    /// Lets the next decode step run `tokens: [B]` in place of those sampled last.
    ///
    /// # Errors
    /// The device failed.
    pub fn replace_tokens(&mut self, b: &mut B, tokens: &[u32]) -> Result<()> {
        assert_eq!(tokens.len(), self.capacity.batch, "one token a sequence");
        b.write_ids(&mut self.state.tokens, tokens)
    }

    /// `steps` tokens more for each sequence: each step runs the tokens sampled last, at their place, and samples the next. A backend
    /// may run them at once, or replay what it recorded at the first call. A sequence whose context is full idles: its cache stays as it is, and
    /// its tokens mean nothing.
    ///
    /// # Errors
    /// The context is full for every sequence, or the device failed.
    pub fn decode(&mut self, b: &mut B, steps: usize) -> Result<()> {
        let past = self.state.places.iter().map(|place| place[0]).min().expect("a batch has a sequence");
        let (needed, context) = (past as usize + steps, self.config.max_position_embeddings);
        if needed > context {
            return Err(Error::ContextFull { needed, context });
        }
        self.state.write_cursor(b)?;
        if self.decode_stride(b).is_some() {
            return self.run_decoder(b, steps);
        }
        for _ in 0..steps / BURST {
            self.burst(b, BURST)?;
        }
        for _ in 0..steps % BURST {
            self.burst(b, 1)?;
        }
        Ok(())
    }

    /// `steps` steps by the backend's decoder.
    fn run_decoder(&mut self, b: &mut B, steps: usize) -> Result<()> {
        let Some(decoder) = self.decoder.as_mut().filter(|_| steps > 0) else { return Ok(()) };
        let State { caches, tokens, cursor, logits, outbox, .. } = &mut self.state;
        b.decode(decoder, &self.weights, DecodeState { caches, tokens, cursor, logits, outbox }, steps)?;
        self.state.count(steps);
        Ok(())
    }

    /// `steps` steps, 1 or [`BURST`], as one recording.
    fn burst(&mut self, b: &mut B, steps: usize) -> Result<()> {
        let which = usize::from(steps > 1);
        let mut recording = std::mem::take(&mut self.state.recordings[which]);
        let step = Step { batch: self.capacity.batch, time: 1 };
        let result = b.repeat(&mut recording, |b| {
            for _ in 0..steps {
                self.pass(b, step)?;
                self.state.sample(b, step.batch, self.config.vocab_size)?;
            }
            Ok(())
        });
        self.state.recordings[which] = recording;
        result?;
        self.state.count(steps);
        Ok(())
    }

    /// The pass over `state.tokens`, recorded where it is of the same size as the one before: windows that slide are, and prompts often.
    fn repeated_pass(&mut self, b: &mut B, step: Step) -> Result<()> {
        let (time, mut recording) = std::mem::take(&mut self.state.window);
        if time != step.time {
            self.state.window.0 = step.time;
            return self.pass(b, step);
        }
        let result = b.repeat(&mut recording, |b| self.pass(b, step));
        self.state.window = (time, recording);
        result
    }

    /// Waits for the oldest row of sampled tokens and appends it to `tokens`.
    ///
    /// # Errors
    /// The device failed.
    pub fn take(&mut self, b: &mut B, tokens: &mut Vec<u32>) -> Result<()> {
        self.state.outstanding = self.state.outstanding.saturating_sub(1);
        b.take(&mut self.state.outbox, tokens)
    }

    /// The logits of the last pass, `rows` of V values.
    ///
    /// # Errors
    /// The device failed.
    pub fn read_logits(&self, b: &mut B, rows: usize) -> Result<Vec<f64>> {
        b.read_wide(&self.state.logits, rows * self.config.vocab_size)
    }

    /// The forward pass over the tokens in `state.tokens`.
    fn pass(&mut self, b: &mut B, step: Step) -> Result<()> {
        let (config, w, s) = (&self.config, &self.weights, &mut self.state);
        let channels = config.hidden_size;
        let shape = AttentionShape {
            step,
            heads: config.num_attention_heads,
            head_size: config.head_size(),
            context: config.max_position_embeddings,
        };
        b.embedding(&mut s.residual, &s.tokens, &w.token, Some(&w.position), &s.cursor, step, channels)?;
        tap(b, "", "embedding", Tap::Wide(&mut s.residual), step.rows() * channels)?;
        for ((attention, mlp), cache) in w.blocks.iter().zip(&mut s.caches) {
            b.attention_sublayer(&mut s.residual, attention, cache, &mut s.scratch, &s.cursor, shape)?;
            b.mlp_sublayer(&mut s.residual, mlp, &mut s.scratch, step.rows())?;
        }
        let rows = match self.capacity.logits {
            LogitRows::Last if step.time > 1 => Rows::Last { step, cursor: &s.cursor },
            LogitRows::All | LogitRows::Last => Rows::All(step.rows()),
        };
        let head = Head { norm: &w.final_norm, token: &w.token, channels, vocab: config.vocab_size };
        b.head(&mut s.logits, &s.residual, &head, &mut s.scratch, rows)
    }
}

impl<B: Backend> Weights<B> {
    fn load(b: &mut B, config: &Config, source: &dyn WeightSource) -> Result<Self> {
        let (c, f, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let token = b.weight(&source.tensor("embedding.token.weight", &[config.vocab_size, c])?)?;
        let position =
            b.weight(&source.tensor("embedding.position.weight", &[config.max_position_embeddings, c])?)?;
        let blocks = (0..config.num_hidden_layers)
            .map(|i| {
                let path = format!("blocks.{i}");
                let attention = AttentionSublayer::load(b, source, &path, c, eps)?;
                Ok((attention, MlpSublayer::load(b, source, &path, c, f, eps)?))
            })
            .collect::<Result<_>>()?;
        Ok(Self { token, position, blocks, final_norm: Norm::load(b, source, "final_norm", c, eps)? })
    }
}

impl<B: Backend> State<B> {
    fn new(b: &mut B, config: &Config, capacity: Capacity) -> Result<Self> {
        let caches = plan::caches(config, capacity.batch)
            .chunks_exact(2)
            .map(|pair| LayerCache::new(b, &pair[0], &pair[1]))
            .collect::<Result<_>>()?;
        let [tokens, cursor, residual, logits]: [Entry; 4] =
            plan::state(config, capacity).try_into().expect("the plan lists the four state buffers");
        Ok(Self {
            caches,
            scratch: Scratch::new(b, config.hidden_size, config.intermediate_size, capacity)?,
            tokens: b.ids(&tokens)?,
            cursor: b.ids(&cursor)?,
            residual: b.wide(&residual)?,
            logits: b.wide(&logits)?,
            outbox: b.outbox(plan::outbox_slots(config, capacity), capacity.batch)?,
            recordings: Default::default(),
            window: Default::default(),
            places: vec![[0, 0, 1]; capacity.batch],
            written: false,
            outstanding: 0,
        })
    }

    /// Has the verbs' cursors say what the host's do.
    fn write_cursor(&mut self, b: &mut B) -> Result<()> {
        if !self.written {
            b.write_ids(&mut self.cursor, self.places.as_flattened())?;
            self.written = true;
        }
        Ok(())
    }

    /// Counts samplings under way: the first ends the pass that the cursors' lengths are of, each further one a decode step.
    fn count(&mut self, steps: usize) {
        let steps_more = number(steps);
        for [past, step, length] in &mut self.places {
            (*past, *step, *length) = (*past + *length + steps_more - 1, *step + steps_more, 1);
        }
        self.outstanding += steps;
    }

    fn sample(&mut self, b: &mut B, batch: usize, vocab: usize) -> Result<()> {
        let Self { outbox, tokens, cursor, logits, .. } = self;
        b.sample(outbox, tokens, cursor, logits, batch, vocab)
    }
}

/// A count of positions or steps as cursors hold it.
fn number(count: usize) -> u32 {
    u32::try_from(count).expect("positions fit u32")
}
