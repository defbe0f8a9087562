use super::*;

/// What a foreign producer may hand over: a managed tensor that owns nothing.
fn foreign(managed: &mut DLManagedTensorVersioned) -> AbiTensor {
    AbiTensor(managed)
}

fn managed(dl_tensor: DLTensor) -> DLManagedTensorVersioned {
    DLManagedTensorVersioned {
        version: DLPackVersion {
            major: DLPACK_MAJOR,
            minor: 3,
        },
        manager_ctx: std::ptr::null_mut(),
        deleter: None,
        flags: 0,
        dl_tensor,
    }
}

/// Why a view with these extents and strides cannot be read. The error comes before any element is touched: there is one only.
fn refusal(shape: &[i64], strides: &[i64]) -> AbiError {
    let dims = Dims {
        shape: shape.to_vec(),
        strides: strides.to_vec(),
    };
    let one = [1f32];
    let mut view = AbiTensorRef::from_slice(
        &one,
        const {
            &Dims {
                shape: vec![],
                strides: vec![],
            }
        },
    );
    view.raw.ndim = shape.len() as i32;
    view.raw.shape = dims.shape.as_ptr().cast_mut();
    view.raw.strides = dims.strides.as_ptr().cast_mut();
    let error = view.as_slice::<f32>().unwrap_err();
    assert_eq!(error.code, ErrorCode::Shape as u32, "{error}");
    assert_eq!(view.to_vec::<f32>().unwrap_err().message, error.message);
    error
}

#[test]
fn a_tensor_keeps_its_elements_and_shape() {
    let t = AbiTensor::from_vec(vec![1f32, 2., 3., 4., 5., 6.], &[2, 3]).unwrap();
    assert_eq!(t.view().shape().unwrap(), [2, 3]);
    assert_eq!(t.view().as_slice::<f32>().unwrap(), [1., 2., 3., 4., 5., 6.]);
    assert_eq!(t.view().to_vec::<f32>().unwrap(), [1., 2., 3., 4., 5., 6.]);
    assert!(t.view().as_slice::<i64>().unwrap_err().message.contains("element type"));
    assert!(AbiTensor::from_vec(vec![1f32], &[2]).is_err());
    let scalar = AbiTensor::from_vec(vec![7i64], &[]).unwrap();
    assert_eq!(scalar.view().as_slice::<i64>().unwrap(), [7]);
    let empty = AbiTensor::from_vec(Vec::<f32>::new(), &[0, 3]).unwrap();
    assert_eq!(empty.view().shape().unwrap(), [0, 3]);
    assert!(empty.view().as_slice::<f32>().unwrap().is_empty());
}

#[test]
fn a_tensor_is_handed_over_read_only() {
    assert!(AbiTensor::from_vec(vec![1f32], &[1]).unwrap().is_read_only());
    let mut writable = managed(refused(NULL, 0));
    assert!(!foreign(&mut writable).is_read_only());
}

#[test]
fn a_shape_whose_product_wraps_is_not_taken_for_an_empty_one() {
    for shape in [
        &[1 << 32, 1 << 32][..],
        &[0, 1 << 40, 1 << 40],
        &[usize::MAX, 2],
        &[1 << 62],
        &[0; 9],
    ] {
        let error = AbiTensor::from_vec(Vec::<f32>::new(), shape).err().unwrap();
        assert!(error.is(ErrorCode::Shape), "{shape:?}: {error}");
    }
}

#[test]
fn strides_that_are_not_row_major_are_refused() {
    let error = refusal(&[2, 2], &[1, 2]);
    assert!(error.message.contains("strides [1, 2], expected [2, 1]"), "{error}");
    refusal(&[2, 2], &[i64::MAX, i64::MIN]);
}

#[test]
fn a_shape_that_no_memory_holds_is_refused_before_its_elements_are_read() {
    let large = [
        &[-1][..],
        &[i64::MIN, i64::MIN],
        &[1 << 32, 1 << 32],
        &[i64::MAX, 2],
        &[1 << 62],
        &[0, 1 << 40, 1 << 40],
        &[1 << 20, 1 << 20, 1 << 20, 1 << 20],
    ];
    for shape in large {
        let error = refusal(shape, &contiguous_strides(shape));
        assert!(error.message.contains(&format!("{shape:?}")), "{error}");
    }
}

#[test]
fn a_rank_that_no_tensor_has_is_refused() {
    let nine = [1; 9];
    assert!(refusal(&nine, &nine).message.contains("9 dimensions"));
    let dims = Dims::new(&[1]);
    let mut view = AbiTensorRef::from_slice(&[1f32], &dims);
    for ndim in [-1, i32::MAX] {
        view.raw.ndim = ndim;
        let error = view.shape().unwrap_err();
        assert!(
            error.is(ErrorCode::Shape) && error.message.contains(&ndim.to_string()),
            "{error}"
        );
    }
}

#[test]
fn null_pointers_are_refused() {
    let dims = Dims::new(&[1]);
    let whole = AbiTensorRef::from_slice(&[1f32], &dims);
    let refuses = |change: &dyn Fn(&mut DLTensor), word: &str| {
        let mut view = whole;
        change(&mut view.raw);
        let error = view.as_slice::<f32>().unwrap_err();
        assert!(error.is(ErrorCode::Shape) && error.message.contains(word), "{error}");
    };
    refuses(&|raw| raw.data = std::ptr::null_mut(), "no aligned memory");
    refuses(&|raw| raw.shape = std::ptr::null_mut(), "no shape");
    refuses(&|raw| raw.strides = std::ptr::null_mut(), "no strides");
    // An offset from null is no address either.
    let offset = |raw: &mut DLTensor| (raw.data, raw.byte_offset) = (std::ptr::null_mut(), 4096);
    refuses(&offset, "no aligned memory");
    refuses(&|raw| raw.byte_offset = u64::MAX - 3, "no aligned memory");
    refuses(&|raw| raw.byte_offset = 2, "no aligned memory");
}

#[test]
fn a_null_tensor_is_an_error_and_not_a_crash() {
    let null = AbiTensor(std::ptr::null_mut());
    let (shape, elements) = (null.view().shape(), null.view().as_slice::<f32>());
    for error in [shape.unwrap_err(), elements.unwrap_err()] {
        assert!(
            error.is(ErrorCode::Shape) && error.message.contains("null tensor"),
            "{error}"
        );
    }
    assert!(!null.is_read_only());
}

#[test]
fn a_tensor_of_another_dlpack_major_is_refused_and_freed() {
    unsafe extern "C" fn count(managed: *mut DLManagedTensorVersioned) {
        // SAFETY: the test sets the context to a live counter.
        unsafe { *(*managed).manager_ctx.cast::<u32>() += 1 }
    }
    let (dims, data, mut freed) = (Dims::new(&[1]), [1f32], 0u32);
    let mut other = managed(AbiTensorRef::from_slice(&data, &dims).raw);
    other.version.major = 2;
    other.manager_ctx = (&raw mut freed).cast();
    other.deleter = Some(count);
    let tensor = foreign(&mut other);
    let error = tensor.view().as_slice::<f32>().unwrap_err();
    assert!(
        error.is(ErrorCode::Shape) && error.message.contains("DLPack 2"),
        "{error}"
    );
    drop(tensor);
    assert_eq!(freed, 1);
    // A later minor version is the same layout.
    let mut later = managed(AbiTensorRef::from_slice(&data, &dims).raw);
    assert_eq!(foreign(&mut later).view().as_slice::<f32>().unwrap(), data);
}

#[test]
fn a_device_tensor_is_refused_by_a_cpu_reader() {
    let dims = Dims::new(&[1]);
    let mut view = AbiTensorRef::from_slice(&[1f32], &dims);
    view.raw.device = DLDevice::cuda(1);
    let error = view.as_slice::<f32>().unwrap_err();
    assert_eq!(error.code, ErrorCode::Device as u32);
    assert!(error.message.contains("cuda:1"));
}

#[test]
#[should_panic(expected = "slice and shape disagree")]
fn a_slice_is_not_lent_under_a_shape_whose_product_wraps() {
    AbiTensorRef::from_slice::<f32>(&[], &Dims::new(&[1 << 32, 1 << 32]));
}

#[test]
fn the_owner_is_dropped_once() {
    use std::sync::Arc;
    let owner = Arc::new(vec![1f32]);
    let pointer = owner.as_ptr().cast_mut();
    // SAFETY: the arc keeps the one element alive.
    let t = unsafe { AbiTensor::from_owner(owner.clone(), pointer.cast(), DLDataType::F32, DLDevice::CPU, &[1]) };
    assert_eq!(Arc::strong_count(&owner), 2);
    drop(t);
    assert_eq!(Arc::strong_count(&owner), 1);
}

#[test]
fn a_panic_of_the_owner_stays_in_the_deleter() {
    use crate::error::tests::Bomb;
    let mut data = [1f32];
    let pointer = data.as_mut_ptr();
    // SAFETY: `data` outlives the tensor.
    drop(unsafe { AbiTensor::from_owner(Bomb, pointer.cast(), DLDataType::F32, DLDevice::CPU, &[1]) });
}
