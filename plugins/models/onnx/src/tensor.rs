//! Constants of a file as tensors: numbers with a point in `f64` until a network asks for them, whole numbers and truth values in `i64`.

use advae_sdk::candle_core::{Device, Result, Tensor, bail};

use crate::proto::TensorProto;
use crate::room;

/// Types of elements, by the number that ONNX gives them.
pub mod types {
    pub const FLOAT: i32 = 1;
    pub const UINT8: i32 = 2;
    pub const INT8: i32 = 3;
    pub const UINT16: i32 = 4;
    pub const INT16: i32 = 5;
    pub const INT32: i32 = 6;
    pub const INT64: i32 = 7;
    pub const BOOL: i32 = 9;
    pub const FLOAT16: i32 = 10;
    pub const DOUBLE: i32 = 11;
    pub const UINT32: i32 = 12;
    pub const UINT64: i32 = 13;
    pub const BFLOAT16: i32 = 16;

    /// Whether it is a number with a point.
    pub fn is_float(kind: i32) -> bool {
        matches!(kind, FLOAT | FLOAT16 | DOUBLE | BFLOAT16)
    }
}

/// Elements in memory.
enum Elements {
    Floats(Vec<f64>),
    Ints(Vec<i64>),
}

/// The tensor of a constant.
///
/// # Errors
/// Where its elements lie outside the file, are of another type than numbers, or are not as many as its shape says.
pub fn read(tensor: &TensorProto) -> Result<Tensor> {
    let name = &tensor.name;
    if tensor.data_location != 0 {
        bail!(
            "the elements of '{name}' lie in another file: export the model as one, torch.onnx.export(..., external_data=False) \
             or onnx.save(onnx.load(FILE), ONE_FILE)"
        )
    }
    let dims: Vec<usize> = (tensor.dims.iter())
        .map(|d| usize::try_from(*d).or_else(|_| bail!("'{name}' has an axis of {d} elements")))
        .collect::<Result<_>>()?;
    let count: usize = match room::count(&dims) {
        // Without elements, the other axes are no larger than those of a value.
        Some(count) if count <= room::VALUE || !dims.contains(&0) => dims.iter().product(),
        _ => bail!("'{name}' has shape {dims:?}, which no machine can hold"),
    };
    let elements = match tensor.raw_data.is_empty() {
        true => typed(tensor)?,
        false => raw(tensor)?,
    };
    let held = match &elements {
        Elements::Floats(values) => values.len(),
        Elements::Ints(values) => values.len(),
    };
    if held != count {
        bail!("'{name}' has shape {dims:?} and {held} elements, expected {count}: the file is damaged")
    }
    match elements {
        Elements::Floats(values) => Tensor::from_vec(values, dims, &Device::Cpu),
        Elements::Ints(values) => Tensor::from_vec(values, dims, &Device::Cpu),
    }
}

/// Elements in the field of their type.
fn typed(tensor: &TensorProto) -> Result<Elements> {
    let ints = || tensor.int32_data.iter().map(|v| i64::from(*v)).collect();
    // 16-bit floats lie in the lower half of 32-bit integers.
    let bits = || tensor.int32_data.iter().map(|v| *v as u16);
    Ok(match tensor.data_type {
        types::FLOAT => Elements::Floats(tensor.float_data.iter().map(|v| f64::from(*v)).collect()),
        types::DOUBLE => Elements::Floats(tensor.double_data.clone()),
        types::FLOAT16 => Elements::Floats(bits().map(|b| half::f16::from_bits(b).to_f64()).collect()),
        types::BFLOAT16 => Elements::Floats(bits().map(|b| half::bf16::from_bits(b).to_f64()).collect()),
        types::INT64 => Elements::Ints(tensor.int64_data.clone()),
        types::UINT32 | types::UINT64 => Elements::Ints(tensor.uint64_data.iter().map(|v| *v as i64).collect()),
        types::UINT8 | types::INT8 | types::UINT16 | types::INT16 | types::INT32 | types::BOOL => {
            Elements::Ints(ints())
        }
        other => return unknown(&tensor.name, other),
    })
}

/// Elements as little-endian bytes.
fn raw(tensor: &TensorProto) -> Result<Elements> {
    let bytes = &tensor.raw_data;
    macro_rules! numbers {
        ($type:ty, $width:literal, $as:expr) => {{
            let (chunks, rest) = bytes.as_chunks::<$width>();
            if !rest.is_empty() {
                bail!(
                    "'{}' has {} bytes, which are no whole number of elements: the file is damaged",
                    tensor.name,
                    bytes.len()
                )
            }
            chunks.iter().map(|chunk| $as(<$type>::from_le_bytes(*chunk))).collect()
        }};
    }
    Ok(match tensor.data_type {
        types::FLOAT => Elements::Floats(numbers!(f32, 4, f64::from)),
        types::DOUBLE => Elements::Floats(numbers!(f64, 8, |v| v)),
        types::FLOAT16 => Elements::Floats(numbers!(half::f16, 2, half::f16::to_f64)),
        types::BFLOAT16 => Elements::Floats(numbers!(half::bf16, 2, half::bf16::to_f64)),
        types::INT64 => Elements::Ints(numbers!(i64, 8, |v| v)),
        types::UINT64 => Elements::Ints(numbers!(u64, 8, |v| v as i64)),
        types::INT32 => Elements::Ints(numbers!(i32, 4, i64::from)),
        types::UINT32 => Elements::Ints(numbers!(u32, 4, i64::from)),
        types::INT16 => Elements::Ints(numbers!(i16, 2, i64::from)),
        types::UINT16 => Elements::Ints(numbers!(u16, 2, i64::from)),
        types::INT8 => Elements::Ints(numbers!(i8, 1, i64::from)),
        types::UINT8 | types::BOOL => Elements::Ints(numbers!(u8, 1, i64::from)),
        other => return unknown(&tensor.name, other),
    })
}

fn unknown<T>(name: &str, kind: i32) -> Result<T> {
    bail!(
        "'{name}' has elements of ONNX type {kind}: expected floats of 16 to 64 bits or integers, and no quantisation"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use advae_sdk::candle_core::DType;

    fn floats(tensor: &TensorProto) -> Vec<f64> {
        read(tensor).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn every_float_type_is_read_from_bytes_and_from_its_field() {
        let values = [0.5f32, -2., 0.];
        let raw = |kind, raw_data| TensorProto {
            dims: vec![3],
            data_type: kind,
            raw_data,
            ..Default::default()
        };
        let bytes = [
            (
                types::FLOAT,
                values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>(),
            ),
            (
                types::DOUBLE,
                values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect(),
            ),
            (
                types::FLOAT16,
                values
                    .iter()
                    .flat_map(|v| half::f16::from_f32(*v).to_le_bytes())
                    .collect(),
            ),
            (
                types::BFLOAT16,
                values
                    .iter()
                    .flat_map(|v| half::bf16::from_f32(*v).to_le_bytes())
                    .collect(),
            ),
        ];
        for (kind, bytes) in bytes {
            assert_eq!(floats(&raw(kind, bytes)), [0.5, -2., 0.], "type {kind}");
        }
        let field = TensorProto {
            dims: vec![3],
            data_type: types::FLOAT16,
            int32_data: values
                .iter()
                .map(|v| i32::from(half::f16::from_f32(*v).to_bits()))
                .collect(),
            ..Default::default()
        };
        assert_eq!(floats(&field), [0.5, -2., 0.]);
    }

    #[test]
    fn integers_and_truth_values_are_whole_numbers() {
        let tensor = TensorProto {
            dims: vec![2],
            data_type: types::BOOL,
            raw_data: vec![1, 0],
            ..Default::default()
        };
        let read = read(&tensor).unwrap();
        assert_eq!((read.dtype(), read.to_vec1::<i64>().unwrap()), (DType::I64, vec![1, 0]));
    }

    #[test]
    fn what_is_damaged_or_elsewhere_is_refused_by_name() {
        let tensor = |change: fn(&mut TensorProto)| {
            let mut tensor = TensorProto {
                name: "fc.weight".into(),
                dims: vec![2],
                data_type: types::FLOAT,
                raw_data: vec![0; 8],
                ..Default::default()
            };
            change(&mut tensor);
            read(&tensor).unwrap_err().to_string()
        };
        for (error, expected) in [
            (tensor(|t| t.raw_data.truncate(7)), "no whole number of elements"),
            (tensor(|t| t.raw_data.truncate(4)), "1 elements, expected 2"),
            (tensor(|t| t.dims = vec![-1]), "an axis of -1"),
            (tensor(|t| t.dims = vec![i64::MAX, i64::MAX]), "no machine can hold"),
            (tensor(|t| t.data_location = 1), "export the model as one"),
            (tensor(|t| t.data_type = 8), "ONNX type 8"),
        ] {
            assert!(error.contains("fc.weight") && error.contains(expected), "{error}");
        }
    }
}
