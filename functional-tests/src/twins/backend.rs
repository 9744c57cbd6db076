//! The twin itself: hands every verb to the host, but for the broken one.

use touchstone_runtime::backend::{
    AttentionShape, CURSOR_LEN, DecodeState, LinearShape, Rows, Step, Weights,
};
use touchstone_runtime::modules::Norm;
use touchstone_runtime::plan::{Entry, Precision};
use touchstone_runtime::sampling::Sampling;
use touchstone_runtime::taps::Taps;
use touchstone_runtime::weights::{Tensor, Values};
use touchstone_runtime::{Backend, Host, Result};

use super::{Defect, attention, scalar};

/// The host in float32 with a defect, or without one as the control.
pub struct Twin {
    host: Host<f32>,
    defect: Option<Defect>,
}

/// A parameter, once for the host's verbs and once in the open.
pub struct Weight {
    host: <Host<f32> as Backend>::Weight,
    values: Vec<f32>,
}

impl Twin {
    /// A twin without buffers.
    #[must_use]
    pub fn new(defect: Option<Defect>) -> Self {
        Self { host: Host::new(), defect }
    }

    /// The defect, if it is one of this verb.
    fn broken(&self, op: &str) -> Option<Defect> {
        self.defect.filter(|defect| defect.blame().op == op)
    }
}

impl Backend for Twin {
    type Buf = <Host<f32> as Backend>::Buf;
    type Wide = <Host<f32> as Backend>::Wide;
    type Weight = Weight;
    type Ids = <Host<f32> as Backend>::Ids;
    type Outbox = <Host<f32> as Backend>::Outbox;
    type Recording = <Host<f32> as Backend>::Recording;
    type Decoder = <Host<f32> as Backend>::Decoder;

    fn precision(&self) -> Precision {
        self.host.precision()
    }

    fn taps(&mut self) -> &mut Taps {
        self.host.taps()
    }

    fn buf(&mut self, entry: &Entry) -> Result<Self::Buf> {
        self.host.buf(entry)
    }

    fn wide(&mut self, entry: &Entry) -> Result<Self::Wide> {
        self.host.wide(entry)
    }

    fn ids(&mut self, entry: &Entry) -> Result<Self::Ids> {
        self.host.ids(entry)
    }

    fn weight(&mut self, tensor: &Tensor<'_>) -> Result<Weight> {
        let values = match &tensor.values {
            Values::F32(values) => values.to_vec(),
            Values::Bf16(values) => values.iter().map(|v| v.to_f32()).collect(),
            Values::F64(values) => values.iter().map(|v| *v as f32).collect(),
        };
        Ok(Weight { host: self.host.weight(tensor)?, values })
    }

    fn outbox(&mut self, slots: usize, batch: usize) -> Result<Self::Outbox> {
        self.host.outbox(slots, batch)
    }

    fn write(&mut self, y: &mut Self::Buf, values: &[f64]) -> Result<()> {
        self.host.write(y, values)
    }

    fn read(&mut self, x: &Self::Buf, len: usize) -> Result<Vec<f64>> {
        self.host.read(x, len)
    }

    fn write_wide(&mut self, y: &mut Self::Wide, values: &[f64]) -> Result<()> {
        self.host.write_wide(y, values)
    }

    fn read_wide(&mut self, x: &Self::Wide, len: usize) -> Result<Vec<f64>> {
        self.host.read_wide(x, len)
    }

    fn write_ids(&mut self, y: &mut Self::Ids, values: &[u32]) -> Result<()> {
        self.host.write_ids(y, values)
    }

    fn read_ids(&mut self, x: &Self::Ids, len: usize) -> Result<Vec<u32>> {
        self.host.read_ids(x, len)
    }

    fn embedding(
        &mut self,
        y: &mut Self::Wide,
        tokens: &Self::Ids,
        token: &Weight,
        position: Option<&Weight>,
        cursor: &Self::Ids,
        step: Step,
        channels: usize,
    ) -> Result<()> {
        let position = position.map(|weight| weight.values.as_slice());
        let defect = self.broken("embedding");
        scalar::embedding(y, tokens, &token.values, position, cursor, step, channels, defect);
        Ok(())
    }

    fn layernorm(
        &mut self,
        y: &mut Self::Buf,
        x: &Self::Wide,
        norm: &Norm<Self>,
        rows: Rows<'_, Self::Ids>,
        channels: usize,
    ) -> Result<()> {
        let parameters = (norm.weight.values.as_slice(), norm.bias.values.as_slice());
        scalar::layernorm(y, x, parameters, norm.eps, rows, channels, self.broken("layernorm"));
        Ok(())
    }

    fn linear(
        &mut self,
        y: &mut Self::Buf,
        x: &Self::Buf,
        weight: &Weight,
        bias: Option<&Weight>,
        shape: LinearShape,
    ) -> Result<()> {
        let bias = bias.map(|weight| weight.values.as_slice());
        scalar::linear(y, x, &weight.values, bias, shape, self.broken("linear"));
        Ok(())
    }

    fn logits(
        &mut self,
        y: &mut Self::Wide,
        x: &Self::Buf,
        weight: &Weight,
        shape: LinearShape,
    ) -> Result<()> {
        self.host.logits(y, x, &weight.host, shape)
    }

    fn gelu(&mut self, y: &mut Self::Buf, x: &Self::Buf, len: usize) -> Result<()> {
        let Some(defect) = self.broken("gelu") else { return self.host.gelu(y, x, len) };
        scalar::gelu(&mut y[..len], &x[..len], defect);
        Ok(())
    }

    fn add(&mut self, y: &mut Self::Wide, x: &Self::Buf, len: usize) -> Result<()> {
        self.host.add(y, x, len)
    }

    fn append(
        &mut self,
        cache: &mut Self::Buf,
        x: &Self::Buf,
        cursor: &Self::Ids,
        shape: AttentionShape,
    ) -> Result<()> {
        let Some(defect) = self.broken("append") else { return self.host.append(cache, x, cursor, shape) };
        attention::append(cache, x, cursor, shape, defect);
        Ok(())
    }

    fn attention(
        &mut self,
        y: &mut Self::Buf,
        q: &Self::Buf,
        keys: &Self::Buf,
        values: &Self::Buf,
        cursor: &Self::Ids,
        shape: AttentionShape,
    ) -> Result<()> {
        let Some(defect) = self.broken("attention") else {
            return self.host.attention(y, q, keys, values, cursor, shape);
        };
        attention::attention(y, q, keys, values, cursor, shape, defect);
        Ok(())
    }

    fn set_sampling(&mut self, outbox: &mut Self::Outbox, sampling: &[Sampling]) -> Result<()> {
        let mut rules = sampling.to_vec();
        for rule in &mut rules {
            match self.defect {
                Some(Defect::TopKOffByOne) if rule.top_k > 0 => rule.top_k += 1,
                Some(Defect::TopPIgnored) => rule.top_p = 1.0,
                Some(Defect::PhiloxWithoutHighSeed) => rule.seed &= u64::from(u32::MAX),
                Some(Defect::RuleOfTheFirstRow) => *rule = sampling[0],
                _ => {}
            }
        }
        self.host.set_sampling(outbox, &rules)
    }

    fn sample(
        &mut self,
        outbox: &mut Self::Outbox,
        tokens: &mut Self::Ids,
        cursor: &mut Self::Ids,
        logits: &Self::Wide,
        batch: usize,
        vocab: usize,
    ) -> Result<()> {
        let mut drawn = cursor.clone();
        let first = cursor[1];
        for place in drawn.chunks_exact_mut(CURSOR_LEN) {
            match self.defect {
                Some(Defect::PhiloxWithoutStep) => place[1] = 0,
                Some(Defect::StepOfTheFirstRow) => place[1] = first,
                _ => {}
            }
        }
        self.host.sample(outbox, tokens, &mut drawn, logits, batch, vocab)?;
        for place in cursor.chunks_exact_mut(CURSOR_LEN) {
            (place[0], place[1], place[2]) = (place[0] + place[2], place[1] + 1, 1);
        }
        Ok(())
    }

    fn take(&mut self, outbox: &mut Self::Outbox, tokens: &mut Vec<u32>) -> Result<()> {
        self.host.take(outbox, tokens)
    }

    fn repeat(
        &mut self,
        _: &mut Self::Recording,
        mut body: impl FnMut(&mut Self) -> Result<()>,
    ) -> Result<()> {
        body(self)
    }

    fn decode_stride(decoder: &Self::Decoder) -> usize {
        match *decoder {}
    }

    fn decode(
        &mut self,
        decoder: &mut Self::Decoder,
        _: &Weights<Self>,
        _: DecodeState<'_, Self>,
        _: usize,
    ) -> Result<()> {
        match *decoder {}
    }
}
