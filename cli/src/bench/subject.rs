//! What is measured: a trained model, or random weights of a config's dimensions.

use std::path::{Path, PathBuf};

use touchstone_runtime::weights::{Checkpoint, RandomWeights, WeightSource};
use touchstone_runtime::{Config, Result, locate};

use super::args::BenchArgs;

/// Seeds the weights of a config without a checkpoint.
const WEIGHTS_SEED: u32 = 1;

/// A model to measure.
pub struct Subject {
    /// The folder's name.
    pub name: String,
    /// Its dimensions.
    pub config: Config,
    /// Where it comes from.
    pub origin: Origin,
    source: Box<dyn WeightSource>,
}

/// Where a model comes from.
pub enum Origin {
    /// A folder with trained weights.
    Model(PathBuf),
    /// A `config.json`; the weights are random.
    Config(PathBuf),
}

impl Subject {
    /// Those that the arguments name, in their order, models first; or else the default model.
    ///
    /// # Errors
    /// A file that cannot be read or used.
    pub fn all(args: &BenchArgs) -> Result<Vec<Self>> {
        let default = args.model.is_empty() && args.config.is_empty();
        let fallback = default.then(locate::default_model).transpose()?;
        let models = args.model.iter().chain(&fallback).map(|dir| Self::trained(dir));
        models.chain(args.config.iter().map(|path| Self::random(path))).collect()
    }

    fn trained(dir: &Path) -> Result<Self> {
        let checkpoint = Checkpoint::open(dir)?;
        Ok(Self {
            name: folder_name(dir),
            config: checkpoint.config().clone(),
            origin: Origin::Model(dir.into()),
            source: Box::new(checkpoint),
        })
    }

    fn random(path: &Path) -> Result<Self> {
        let config = Config::load(path)?;
        // `config.json` alone has no folder in its name.
        let full = path.canonicalize().unwrap_or_else(|_| path.into());
        Ok(Self {
            name: folder_name(full.parent().unwrap_or(&full)),
            origin: Origin::Config(path.into()),
            source: Box::new(RandomWeights::new(WEIGHTS_SEED).stored(config.dtype)),
            config,
        })
    }

    /// The parameters.
    pub fn source(&self) -> &dyn WeightSource {
        &*self.source
    }

    /// `trained` or `random`.
    pub fn weights(&self) -> &'static str {
        match self.origin {
            Origin::Model(_) => "trained",
            Origin::Config(_) => "random",
        }
    }
}

/// The last part of a path, also of `.` and the like.
fn folder_name(dir: &Path) -> String {
    let full = dir.canonicalize().unwrap_or_else(|_| dir.into());
    full.file_name().map_or_else(|| full.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// Floating-point operations of a pass over `time` new positions from position 0 that keeps the last position's logits: two for
/// each weight of a matrix product, and for each channel of a visible key or value.
pub fn pass_flops(config: &Config, time: usize) -> f64 {
    let (c, f, t) = (config.hidden_size as f64, config.intermediate_size as f64, time as f64);
    let products = t * (4.0 * c * c + 2.0 * c * f);
    let attention = 2.0 * c * t * (t + 1.0) / 2.0;
    2.0 * (config.num_hidden_layers as f64 * (products + attention) + c * config.vocab_size as f64)
}

#[cfg(test)]
mod tests {
    use touchstone_runtime::Config;

    use super::pass_flops;

    /// Without this, a speed in GFLOP/s could count a multiplication and its addition as one, or forget attention.
    #[test]
    fn flops_are_those_counted_by_hand() {
        let text = r#"{"vocab_size": 5, "max_position_embeddings": 9, "hidden_size": 2, "num_attention_heads": 1,
            "intermediate_size": 3, "num_hidden_layers": 4, "layer_norm_eps": 1e-5, "hidden_act": "gelu",
            "tie_word_embeddings": true, "model_type": "touchstone_gpt", "dtype": "float32"}"#;
        let config = Config::parse(text, "config.json".as_ref()).unwrap();
        // A block and position: q, k, v, out of 2 x 2 and up, down of 2 x 3. Its keys and values: 1 visible position, then 2.
        let block = 2 * (4 * 4 + 2 * 6) + 2 * 2 * (1 + 2);
        assert_eq!(pass_flops(&config, 2), 2.0 * f64::from(4 * block + 2 * 5));
    }
}
