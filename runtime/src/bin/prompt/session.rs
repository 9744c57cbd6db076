//! The program's course: read, check, load, generate.

use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use touchstone_runtime::device::{Device, Job, dispatch};
use touchstone_runtime::generate::{self, Generator, Request, Timings};
use touchstone_runtime::model::Model;
use touchstone_runtime::plan::Capacity;
use touchstone_runtime::sampling::Sampling;
use touchstone_runtime::threads;
use touchstone_runtime::tokenizer::Tokenizer;
use touchstone_runtime::weights::Checkpoint;
use touchstone_runtime::{Config, locate};

use crate::args::{Args, Input};
use crate::interactive::Lines;
use crate::stats::{BatchStats, Generated, Stats};
use crate::voice::{Spoken, Voice};
use crate::{Failure, batch, interactive, interrupt, say};

/// Does what the arguments ask for. What can be wrong with them is found before a device is opened.
pub fn run(args: &Args) -> Result<(), Failure> {
    let began = Instant::now();
    args.check_counts()?;
    if let Some(count) = args.threads {
        threads::limit(count.into());
    }
    let sampling = args.sampling(args.seed.unwrap_or_else(random_seed))?;
    let input = args.input()?;
    let dir = match &args.model {
        Some(dir) => dir.clone(),
        None => locate::default_model()?,
    };
    let _awake = args.device.warm_up();
    let checkpoint = Checkpoint::open(&dir)?;
    let config = checkpoint.config();
    let tokenizer = Tokenizer::load(&dir.join("tokenizer.json"), config.vocab_size)?;
    let work = match input {
        Input::Text(text) => Work::Once(Question { tokens: tokenizer.encode(&text)?, text }),
        Input::Batch(text, path) => Work::Batch(batch::parse(&text, &path, args, sampling, &tokenizer)?),
        Input::Interactive => Work::Session(Lines::open()?),
    };
    // Not before: the line editor, too, takes SIGINT when it is made.
    interrupt::install();
    let dtype = config.dtype;
    let session = Session { args, began, sampling, work, dir, checkpoint, tokenizer };
    dispatch(session, args.device, args.dtype, dtype)?
}

/// 32 random bits: JSON readers keep no more than 53.
fn random_seed() -> u64 {
    // The standard library's only source of randomness is the key of its hash maps.
    RandomState::new().hash_one(0) >> 32
}

/// A prompt.
pub struct Question {
    text: String,
    tokens: Vec<u32>,
}

/// What there is to do.
enum Work {
    /// Continue one prompt.
    Once(Question),
    /// Continue many.
    Batch(Vec<batch::Prompt>),
    /// Answer lines.
    Session(Lines),
}

impl Work {
    fn capacity(&self, config: &Config) -> Capacity {
        match self {
            Self::Batch(prompts) => batch::capacity(prompts, config),
            Self::Once(_) | Self::Session(_) => generate::capacity(config.max_position_embeddings, 1),
        }
    }
}

/// All that is known before there is a device.
struct Session<'a> {
    args: &'a Args,
    began: Instant,
    sampling: Sampling,
    work: Work,
    dir: PathBuf,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
}

impl Job for Session<'_> {
    type Output = Result<(), Failure>;

    fn run<D: Device>(self, mut device: D, choice: &str) -> Result<(), Failure> {
        let Self { args, began, sampling, work, dir, checkpoint, tokenizer } = self;
        say(&format!("{choice}, seed {}, {}", sampling.seed, dir.display()));
        let config = checkpoint.config().clone();
        device.taps().set_path(args.path);
        let capacity = work.capacity(&config);
        let mut model = Model::new(&mut device, &config, &checkpoint, capacity)?;
        drop(checkpoint);
        let load = began.elapsed();
        let generator = Generator::new(&mut device, &mut model, capacity.batch, D::LOOKAHEAD);
        let mut speaker = Speaker { args, tokenizer: &tokenizer, generator, load };
        match work {
            Work::Session(lines) => interactive::run(&mut speaker, lines, sampling),
            Work::Batch(prompts) => {
                interrupt::heed(|| batch::run(&mut speaker, &prompts, capacity, choice, &dir))
            }
            Work::Once(question) => interrupt::heed(|| match args.json {
                true => speaker.json(&question, sampling, began, choice, &dir),
                false => speaker.samples(&question, sampling, began),
            }),
        }
    }
}

/// A loaded model that answers prompts.
pub struct Speaker<'a, 'g, D: Device> {
    /// The arguments.
    pub args: &'a Args,
    /// Text to tokens and back.
    pub tokenizer: &'a Tokenizer,
    /// The model.
    pub generator: Generator<'g, D>,
    load: Duration,
}

impl<D: Device> Speaker<'_, '_, D> {
    /// A prompt of the session.
    ///
    /// # Errors
    /// A character that the model does not know.
    pub fn question(&self, text: String) -> touchstone_runtime::Result<Question> {
        Ok(Question { tokens: self.tokenizer.encode(&text)?, text })
    }

    /// Streams every sample of one prompt.
    fn samples(&mut self, question: &Question, sampling: Sampling, began: Instant) -> Result<(), Failure> {
        let samples = self.args.num_samples;
        for sample in 0..samples {
            if sample > 0 {
                io::stdout().write_all(b"---\n")?;
            }
            let began = if sample == 0 { began } else { Instant::now() };
            let end_line = sample + 1 < samples || io::stdout().is_terminal();
            if self.stream(question, nth(sampling, sample), began, end_line)?.interrupted {
                return Err(Failure::Interrupted);
            }
        }
        Ok(())
    }

    /// Streams one continuation, whose wait counts from `began`; `end_line` adds the line end that it may lack.
    pub fn stream(
        &mut self,
        question: &Question,
        sampling: Sampling,
        began: Instant,
        end_line: bool,
    ) -> Result<Spoken, Failure> {
        if self.args.echo {
            io::stdout().write_all(question.text.as_bytes())?;
            io::stdout().flush()?;
        }
        let voice = Voice::streaming(self.tokenizer);
        let (spoken, timings, wait) = self.speak(question, sampling, voice, began)?;
        if end_line && !spoken.ends_line {
            io::stdout().write_all(b"\n")?;
        }
        if self.args.stats {
            say(&self.stats(question, &timings, wait).to_string());
        }
        Ok(spoken)
    }

    /// Gathers every sample of one prompt and prints them as one JSON object.
    fn json(
        &mut self,
        question: &Question,
        sampling: Sampling,
        began: Instant,
        device: &str,
        dir: &Path,
    ) -> Result<(), Failure> {
        let mut samples = Vec::new();
        let mut interrupted = false;
        for sample in 0..self.args.num_samples {
            let sampling = nth(sampling, sample);
            let began = if sample == 0 { began } else { Instant::now() };
            let voice = Voice::gathering(self.tokenizer, self.args.max_new_tokens as usize);
            let (spoken, timings, wait) = self.speak(question, sampling, voice, began)?;
            let stats = self.stats(question, &timings, wait);
            samples.push(Sample { seed: sampling.seed, text: spoken.text, tokens: spoken.tokens, stats });
            interrupted = spoken.interrupted;
            if interrupted {
                break;
            }
        }
        let Sampling { temperature, top_k, top_p, .. } = sampling;
        let report = Report {
            model: dir.display().to_string(),
            device,
            prompt: &question.text,
            max_new_tokens: self.args.max_new_tokens,
            temperature,
            top_k,
            top_p,
            interrupted,
            samples,
        };
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, &report).map_err(io::Error::from)?;
        out.write_all(b"\n")?;
        if interrupted { Err(Failure::Interrupted) } else { Ok(()) }
    }

    /// Generates through `voice`. Gives the wait before the prompt's pass, too.
    fn speak(
        &mut self,
        question: &Question,
        sampling: Sampling,
        mut voice: Voice<'_>,
        began: Instant,
    ) -> Result<(Spoken, Timings, Duration), Failure> {
        let max_new_tokens = self.args.max_new_tokens as usize;
        let request = Request { prompt: &question.tokens, max_new_tokens, sampling };
        let wait = began.elapsed();
        let timings = self.generator.generate(&[request], |_, token| voice.token(token))?;
        Ok((voice.finish()?, timings, wait))
    }

    fn stats(&self, question: &Question, timings: &Timings, wait: Duration) -> Stats {
        let config = self.generator.model().config();
        let seen = question.tokens.len().min(config.max_position_embeddings);
        Stats::new(self.generator.backend(), config, seen, timings, self.load, wait)
    }

    /// The figures of a batch.
    pub fn batch_stats(&self, capacity: Capacity, generated: Generated) -> BatchStats {
        let (device, config) = (self.generator.backend(), self.generator.model().config());
        BatchStats::new(device, config, capacity, self.load, generated)
    }
}

/// The rule of sample number `sample`, from 0.
pub fn nth(sampling: Sampling, sample: u32) -> Sampling {
    Sampling { seed: sampling.seed.wrapping_add(sample.into()), ..sampling }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    model: String,
    device: &'a str,
    prompt: &'a str,
    max_new_tokens: u32,
    temperature: f32,
    top_k: u32,
    top_p: f32,
    interrupted: bool,
    samples: Vec<Sample>,
}

/// One continuation.
#[derive(Serialize)]
struct Sample {
    seed: u64,
    text: String,
    tokens: Vec<u32>,
    stats: Stats,
}
