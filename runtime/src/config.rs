//! `config.json`: the model's dimensions, under the names that Hugging Face transformers gives them.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The dimensions of a GPT. Unknown fields and unknown values are errors: a default would run another model silently.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// V: number of tokens.
    pub vocab_size: usize,
    /// P: the longest sequence the position embedding knows.
    pub max_position_embeddings: usize,
    /// C: width of the residual stream.
    pub hidden_size: usize,
    /// H: attention heads; divides C.
    pub num_attention_heads: usize,
    /// F: width of the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Added to the variance inside LayerNorm's root.
    pub layer_norm_eps: f64,
    /// The MLP's activation.
    pub hidden_act: Activation,
    /// The head reuses the token embedding; always true here.
    pub tie_word_embeddings: bool,
    /// The architecture.
    pub model_type: ModelType,
    /// The dtype the weights are stored in.
    pub dtype: StoredDtype,
}

/// Activation functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x · Φ(x), computed with erf (`torch.nn.GELU()`).
    Gelu,
}

/// Architectures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelType {
    /// Pre-norm decoder with learned positions and a tied head.
    TouchstoneGpt,
}

/// How a checkpoint stores its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StoredDtype {
    /// IEEE single precision.
    Float32,
    /// bfloat16.
    Bfloat16,
}

/// The largest value of any dimension: every product of two stays within 2^48 elements.
const DIMENSION_MAX: usize = 1 << 24;

impl Config {
    /// Reads and checks `path`.
    ///
    /// # Errors
    /// [`Error::Read`] where the file cannot be read, [`Error::Invalid`] where a field is missing, unknown or out of range.
    pub fn load(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })?;
        Self::parse(&text, path)
    }

    /// Parses the text of a `config.json`; `path` only serves the error messages.
    ///
    /// # Errors
    /// [`Error::Invalid`] where a field is missing, unknown or out of range.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let invalid =
            |field: &str, problem: String| Error::Invalid { path: path.into(), field: field.into(), problem };
        let config: Self =
            serde_json::from_str(text).map_err(|error| invalid("config", error.to_string()))?;
        config.check().map_err(|(field, problem)| invalid(field, problem))?;
        Ok(config)
    }

    /// D: width of a head.
    #[must_use]
    pub fn head_size(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// The number of parameters, the tied head counted once.
    #[must_use]
    pub fn parameters(&self) -> usize {
        let (c, f) = (self.hidden_size, self.intermediate_size);
        let block = 4 * c * c + c + 2 * c * f + f + c + 4 * c;
        (self.vocab_size + self.max_position_embeddings) * c + self.num_hidden_layers * block + 2 * c
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        let dimensions = [
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("hidden_size", self.hidden_size),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
        ];
        for (field, value) in dimensions {
            if value == 0 || value > DIMENSION_MAX {
                return Err((field, format!("is {value}, expected 1 to {DIMENSION_MAX}")));
            }
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let problem = format!(
                "is {}, which does not divide hidden_size {}",
                self.num_attention_heads, self.hidden_size
            );
            return Err(("num_attention_heads", problem));
        }
        if !(self.layer_norm_eps > 0.0 && self.layer_norm_eps < 1.0) {
            return Err((
                "layer_norm_eps",
                format!("is {}, expected a number between 0 and 1", self.layer_norm_eps),
            ));
        }
        if !self.tie_word_embeddings {
            return Err((
                "tie_word_embeddings",
                "is false, expected true: touchstone_gpt has a tied head".into(),
            ));
        }
        Ok(())
    }
}
