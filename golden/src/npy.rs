//! The `.npy` format, as much of it as golden cases use: C order, little endian, `f4`, `f8` and `u4`.
//!
//! Written here and not taken from a crate because the header is hostile input: a reader of all of Python's literals can be sent into
//! unbounded recursion, and one that trusts the header's length takes 4 GiB for a file of 12 bytes.
//! Source: `numpy.lib.format`, versions 1.0 to 3.0.

/// A parsed file.
#[derive(Debug, PartialEq, Eq)]
pub struct Npy<'a> {
    /// How the elements are stored.
    pub element: Element,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The elements' bytes: exactly as many as the shape asks for.
    pub data: &'a [u8],
}

/// Element types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// `<f4`
    F32,
    /// `<f8`
    F64,
    /// `<u4`
    U32,
}

/// The longest header of a file that is read; numpy's own limit on what it parses.
pub const HEADER_BYTES_MAX: usize = 10_000;

impl Element {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::F64 => 8,
        }
    }

    /// numpy's name of the type.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "<f4",
            Self::F64 => "<f8",
            Self::U32 => "<u4",
        }
    }

    /// The elements of `data` as float64, which holds each of the three types exactly.
    pub fn values(self, data: &[u8]) -> Vec<f64> {
        match self {
            Self::F32 => data.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
            Self::F64 => data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
            Self::U32 => data.as_chunks().0.iter().map(|b| f64::from(u32::from_le_bytes(*b))).collect(),
        }
    }
}

/// Parses a whole file. Errors say what stands there and what was expected.
pub fn parse(file: &[u8]) -> Result<Npy<'_>, String> {
    let (magic, rest) = file.split_at_checked(8).ok_or("is too short for a .npy file")?;
    if &magic[..6] != b"\x93NUMPY" {
        return Err("does not begin with .npy's magic number".into());
    }
    let (length, rest) = match (magic[6], magic[7]) {
        (1, 0) => {
            let (bytes, rest) = rest.split_first_chunk().ok_or("ends within the header's length")?;
            (usize::from(u16::from_le_bytes(*bytes)), rest)
        }
        (2 | 3, 0) => {
            let (bytes, rest) = rest.split_first_chunk().ok_or("ends within the header's length")?;
            (u32::from_le_bytes(*bytes) as usize, rest)
        }
        (major, minor) => return Err(format!("has .npy version {major}.{minor}, expected 1.0, 2.0 or 3.0")),
    };
    let (header, data) = rest.split_at_checked(length).ok_or("ends within the header")?;
    let (element, shape) = parse_header(header)?;
    let expected =
        byte_len(&shape, element).ok_or_else(|| format!("has shape {shape:?}, too large to exist"))?;
    if data.len() != expected {
        let (name, actual) = (element.name(), data.len());
        return Err(format!("holds {actual} bytes of data, expected {expected} for {shape:?} {name}"));
    }
    Ok(Npy { element, shape, data })
}

/// Bytes of a tensor; `None` where that overflows.
pub fn byte_len(shape: &[usize], element: Element) -> Option<usize> {
    shape.iter().try_fold(element.bytes(), |bytes, &n| bytes.checked_mul(n))
}

/// The header's dictionary: `descr`, `fortran_order` and `shape`, each exactly once, in any order.
fn parse_header(header: &[u8]) -> Result<(Element, Vec<usize>), String> {
    let text = std::str::from_utf8(header).map_err(|_| "has a header that is not text".to_owned())?;
    let mut parser = Parser { rest: text.trim() };
    let (mut element, mut order, mut shape) = (None, None, None);
    parser.expect("{")?;
    while !parser.accept("}") {
        let key = parser.string()?;
        parser.expect(":")?;
        let repeated = match key {
            "descr" => element.replace(parser.element()?).is_some(),
            "fortran_order" => order.replace(parser.boolean()?).is_some(),
            "shape" => shape.replace(parser.tuple()?).is_some(),
            other => return Err(format!("has the unknown header field {other:?}")),
        };
        if repeated {
            return Err(format!("has the header field {key:?} twice"));
        }
        if !parser.accept(",") {
            parser.expect("}")?;
            break;
        }
    }
    if !parser.rest.is_empty() {
        return Err(format!("has {:?} after the header's dictionary", parser.rest));
    }
    if order.ok_or("has a header without fortran_order")? {
        return Err("is in Fortran order, expected C order".into());
    }
    Ok((element.ok_or("has a header without descr")?, shape.ok_or("has a header without shape")?))
}

/// Reads the few Python literals that a header holds, skipping spaces in front of each.
struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn accept(&mut self, token: &str) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        if self.accept(token) {
            return Ok(());
        }
        let found: String = self.rest.chars().take(12).collect();
        Err(format!("has a header with {found:?} where {token:?} was expected"))
    }

    fn string(&mut self) -> Result<&'a str, String> {
        let quote = if self.accept("\"") { "\"" } else { "'" };
        if quote == "'" {
            self.expect(quote)?;
        }
        let (text, rest) = self.rest.split_once(quote).ok_or("has a header with an unfinished string")?;
        self.rest = rest;
        Ok(text)
    }

    fn element(&mut self) -> Result<Element, String> {
        let name = self.string()?;
        [Element::F32, Element::F64, Element::U32]
            .into_iter()
            .find(|element| element.name() == name)
            .ok_or_else(|| format!("holds elements of type {name:?}, expected \"<f4\", \"<f8\" or \"<u4\""))
    }

    fn boolean(&mut self) -> Result<bool, String> {
        if self.accept("True") {
            return Ok(true);
        }
        self.expect("False").map(|()| false)
    }

    fn tuple(&mut self) -> Result<Vec<usize>, String> {
        let mut shape = Vec::new();
        self.expect("(")?;
        while !self.accept(")") {
            self.rest = self.rest.trim_start();
            let end = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
            let (digits, rest) = self.rest.split_at(end);
            shape.push(digits.parse().map_err(|_| format!("has {digits:?} as a dimension"))?);
            self.rest = rest;
            if !self.accept(",") {
                self.expect(")")?;
                break;
            }
        }
        Ok(shape)
    }
}

#[cfg(test)]
mod tests {
    use super::{Element, parse};

    /// A file of version 1.0 with this header and this many bytes of data.
    fn file(header: &str, data_bytes: usize) -> Vec<u8> {
        let length = u16::try_from(header.len()).unwrap().to_le_bytes();
        [b"\x93NUMPY\x01\x00", length.as_slice(), header.as_bytes(), &vec![0; data_bytes]].concat()
    }

    /// Without this, what numpy writes might not be what we read.
    #[test]
    fn reads_what_numpy_writes() {
        let scalar = file("{'descr': '<f8', 'fortran_order': False, 'shape': (), }        \n", 8);
        assert_eq!(parse(&scalar).unwrap().shape, [0usize; 0]);
        let vector = file("{'descr': '<u4', 'fortran_order': False, 'shape': (3,), }    \n", 12);
        assert_eq!(parse(&vector).unwrap().element, Element::U32);
        let matrix = file("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 5), }\n", 40);
        let npy = parse(&matrix).unwrap();
        assert_eq!((npy.element, npy.shape, npy.data.len()), (Element::F32, vec![2, 5], 40));
    }

    /// Without this, a damaged or hostile file could be read as other numbers, panic, or take the machine's memory.
    #[test]
    fn refuses_what_is_not_exactly_the_format() {
        let headers = [
            "",
            "{",
            "{'descr'",
            "{'descr': '<f4'}",
            "{'descr': '<f4', 'fortran_order': False}",
            "{'descr': '<f4', 'fortran_order': True, 'shape': (2,)}",
            "{'descr': '>f4', 'fortran_order': False, 'shape': (2,)}",
            "{'descr': '<f2', 'fortran_order': False, 'shape': (4,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)} x",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'more': 1}",
            "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-2,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296, 4294967296)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999999999,)}",
            "[[[[[[[[[[[[[[[[",
        ];
        for header in headers {
            assert!(parse(&file(header, 8)).is_err(), "{header}");
        }
        let good = file("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", 8);
        assert!(parse(&good).is_ok());
        assert!(parse(&[good.as_slice(), &[0; 4]].concat()).is_err(), "surplus data");
        for end in 0..good.len() {
            assert!(parse(&good[..end]).is_err(), "cut after {end} bytes");
        }
        assert!(parse(b"\x93NUMPY\x02\x00\xff\xff\xff\xff").is_err());
        assert!(parse(b"\x93NUMPY\x04\x00\x00\x00").is_err());
    }
}
