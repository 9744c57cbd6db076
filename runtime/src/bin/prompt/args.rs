//! The command line.

use std::io::{self, IsTerminal, Read};
use std::path::PathBuf;

use clap::Parser;
use touchstone_runtime::device::{DeviceChoice, DtypeChoice};
use touchstone_runtime::sampling::Sampling;
use touchstone_runtime::taps::Path;
use touchstone_runtime::threads::COUNT_MAX;
use touchstone_runtime::{Error, Result};

/// Continue a text with a GPT.
///
/// The continuation alone goes to standard output, as it is generated; everything else goes to standard error. A flag counts over its
/// environment variable, and that over the default. Without a prompt, a terminal gets an interactive session, and anything else is read
/// as the prompt.
#[derive(Debug, Parser)]
#[command(name = "prompt", version, allow_negative_numbers = true, after_help = EXIT_CODES, max_term_width = 110)]
pub struct Args {
    /// The text to continue; `-` reads it from standard input, to the byte
    #[arg(conflicts_with = "file")]
    pub prompt: Option<String>,
    /// Read the prompt from this file, to the byte; `-` is standard input
    #[arg(long, value_name = "PATH")]
    pub file: Option<PathBuf>,
    /// Continue many prompts at once, each a line of this file (`-` is standard input): a JSON object with `prompt` and, where they differ from
    /// the options, `max_new_tokens`, `seed`, `temperature`, `top_k` and `top_p`. Each text is the one that its prompt gets alone and comes
    /// below a line `--- line N`
    #[arg(long, value_name = "PATH", conflicts_with_all = ["prompt", "file", "interactive"])]
    pub batch: Option<PathBuf>,
    /// Folder with config.json, model.safetensors and tokenizer.json [default: models/shakespeare-char, looked for in
    /// $TOUCHSTONE_ROOT, then from the current directory upwards, then from the program's upwards]
    #[arg(long, value_name = "DIR", env = "TOUCHSTONE_MODEL")]
    pub model: Option<PathBuf>,
    /// Where to run: auto (the first GPU, or else the CPU), cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", env = "TOUCHSTONE_DEVICE")]
    pub device: DeviceChoice,
    /// Working precision; auto is the one the weights are stored in. The CPU computes in f32
    #[arg(long, default_value = "auto", env = "TOUCHSTONE_DTYPE")]
    pub dtype: DtypeChoice,
    /// How to run the model: as fast as the device can, over all of it, step by step by fused kernels, or by plain ones. The text is
    /// the same but for rounding
    #[arg(long, value_name = "PATH", default_value = "fastest", env = "TOUCHSTONE_PATH")]
    pub path: Path,
    /// Threads that share the CPU's work [default: one a processor]
    #[arg(long, value_name = "N", env = "TOUCHSTONE_THREADS", value_parser = clap::value_parser!(u16).range(1..=COUNT_MAX.into()))]
    pub threads: Option<u16>,
    /// Tokens to generate. The default leaves a short prompt within the trained models' context of 256; past the context the window
    /// slides, and every token takes a pass over all of it
    #[arg(long, value_name = "N", default_value_t = 240, env = "TOUCHSTONE_MAX_NEW_TOKENS")]
    pub max_new_tokens: u32,
    /// Divides the logits; 0 is greedy
    #[arg(long, value_name = "T", default_value_t = 0.8, env = "TOUCHSTONE_TEMPERATURE")]
    pub temperature: f32,
    /// Sample among the K likeliest tokens; 0 is off
    #[arg(long, value_name = "K", default_value_t = 40, env = "TOUCHSTONE_TOP_K")]
    pub top_k: u32,
    /// Sample among the likeliest tokens that hold this much probability; 1 is off
    #[arg(long, value_name = "P", default_value_t = 1.0, env = "TOUCHSTONE_TOP_P")]
    pub top_p: f32,
    /// Always take the likeliest token, whatever temperature, top-k and top-p say
    #[arg(long)]
    pub greedy: bool,
    /// Seed of the random numbers [default: a random one, printed on standard error]
    #[arg(long, env = "TOUCHSTONE_SEED")]
    pub seed: Option<u64>,
    /// Continue the prompt this many times, with the seeds SEED, SEED + 1, …; a line `---` stands between the texts
    #[arg(long, value_name = "N", default_value_t = 1, env = "TOUCHSTONE_NUM_SAMPLES")]
    pub num_samples: u32,
    /// Print the prompt in front of each continuation
    #[arg(long, conflicts_with = "json")]
    pub echo: bool,
    /// Print times, speed and memory on standard error
    #[arg(long)]
    pub stats: bool,
    /// Print one JSON object at the end, with the texts, the token ids and the figures of --stats
    #[arg(long, conflicts_with = "interactive")]
    pub json: bool,
    /// Read prompts line by line, even where standard input is no terminal; a line that ends in `\` goes on in the next
    #[arg(long, conflicts_with_all = ["prompt", "file"])]
    pub interactive: bool,
}

const EXIT_CODES: &str = "\
Exit codes:
    0  done
    2  usage: an argument, an empty prompt, a character that the model does not know
    3  no GPU, where one was asked for
    4  a file or model that cannot be read, written or used, a line of a batch included
    5  the device failed
  130  interrupted (Ctrl-C; a second one ends the program on the spot)";

/// Where prompts come from.
pub enum Input {
    /// One prompt.
    Text(String),
    /// The text of a batch, and where it comes from.
    Batch(String, PathBuf),
    /// A session, line by line.
    Interactive,
}

impl Args {
    /// How tokens are picked, checked.
    ///
    /// # Errors
    /// Those of [`Sampling::checked`].
    pub fn sampling(&self, seed: u64) -> Result<Sampling> {
        let Self { temperature, top_k, top_p, .. } = *self;
        let given = Sampling { temperature, top_k, top_p, seed }.checked()?;
        Ok(if self.greedy { Sampling { seed, ..Sampling::GREEDY } } else { given })
    }

    /// The counts must be at least 1, and a batch has one sample a line.
    ///
    /// # Errors
    /// [`Error::Argument`].
    pub fn check_counts(&self) -> Result<()> {
        for (name, value) in [("max-new-tokens", self.max_new_tokens), ("num-samples", self.num_samples)] {
            if value == 0 {
                return Err(Error::Argument { name, problem: "is 0, expected at least 1".into() });
            }
        }
        if self.batch.is_some() && self.num_samples > 1 {
            let problem = format!("is {}, expected 1 with --batch: a line a sample", self.num_samples);
            return Err(Error::Argument { name: "num-samples", problem });
        }
        Ok(())
    }

    /// The prompt or the batch, read from where it is; a prompt is never empty.
    ///
    /// # Errors
    /// [`Error::Read`] for a file that cannot be read, [`Error::Invalid`] for one that is not UTF-8, [`Error::Argument`] where there is
    /// nothing in it.
    pub fn input(&self) -> Result<Input> {
        let stdin = PathBuf::from("-");
        if let Some(path) = &self.batch {
            let text = if *path == stdin { read_stdin()? } else { read(path)? };
            let path = if *path == stdin { STDIN.into() } else { path.clone() };
            return Ok(Input::Batch(text, path));
        }
        let (text, origin) = match (&self.prompt, &self.file) {
            _ if self.interactive => return Ok(Input::Interactive),
            (Some(text), _) if text != "-" => (text.clone(), "the prompt"),
            (None, Some(path)) if *path != stdin => (read(path)?, "the prompt file"),
            (None, None) if io::stdin().is_terminal() && self.json => {
                let problem = "is missing, expected one with --json".into();
                return Err(Error::Argument { name: "the prompt", problem });
            }
            (None, None) if io::stdin().is_terminal() => return Ok(Input::Interactive),
            _ => (read_stdin()?, "the prompt from standard input"),
        };
        if text.is_empty() {
            return Err(Error::Argument {
                name: origin,
                problem: "is empty, expected at least one character".into(),
            });
        }
        Ok(Input::Text(text))
    }
}

/// What stands for a path in messages.
const STDIN: &str = "standard input";

fn read(path: &PathBuf) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.clone(), source })?;
    utf8(bytes, path.clone())
}

fn read_stdin() -> Result<String> {
    let path = PathBuf::from(STDIN);
    let mut bytes = Vec::new();
    io::stdin().read_to_end(&mut bytes).map_err(|source| Error::Read { path: path.clone(), source })?;
    utf8(bytes, path)
}

fn utf8(bytes: Vec<u8>, path: PathBuf) -> Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let position = error.utf8_error().valid_up_to();
        Error::Invalid { path, field: format!("byte {position}"), problem: "is not UTF-8 text".into() }
    })
}
