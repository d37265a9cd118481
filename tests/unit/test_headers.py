"""The store's header."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_checkpoint.chunking import DATA_CHUNKER, METADATA_CHUNKER, ChunkerParameters, Cutter
from cas_checkpoint.errors import DamagedObject, InvalidArgument, UnsupportedStore
from cas_checkpoint.headers import MAX_HEADER_SIZE, OPERATIONS, Header, check_features
from cas_checkpoint.ids import StoreId
from cas_checkpoint.records import Kind, decode_record, encode_record

STORE = StoreId(b"id of some store")
NAMES = ("store", "chunk_id", "chunker", "metadata_chunker", "capabilities", "features", "key_slots")
CHUNKER = METADATA_CHUNKER._asdict()


def body():
    """Return the body of a valid header."""
    fields = decode_record(Kind.HEADER, Header(STORE).encode())
    return {name: fields.get(name) for name in NAMES}


def decode(**changes):
    return Header.decode(encode_record(Kind.HEADER, {**body(), **changes}))


@st.composite
def chunkers(draw):
    sizes = draw(st.tuples(st.integers(64, 2**20), st.integers(256, 2**22), st.integers(1024, 2**24)))
    return ChunkerParameters("fastcdc-2020", *sorted(sizes), draw(st.integers(0, 3)), draw(st.integers(0, 2**63 - 1)))


names = st.lists(st.text(max_size=20), max_size=4).map(tuple)


@settings(deadline=None, max_examples=100)
@given(
    st.binary(min_size=16, max_size=16),
    st.booleans(),
    st.tuples(*(st.tuples(st.just(operation), names) for operation in OPERATIONS)),
    st.integers(0, 2**63 - 1),
)
def test_a_header_comes_back(store, put_if_absent, features, seed):
    header = Header(StoreId(store), DATA_CHUNKER._replace(seed=seed), METADATA_CHUNKER, put_if_absent, features)
    assert Header.decode(header.encode()) == header


def test_a_header_has_the_specified_fields():
    assert body() == {
        "store": STORE,
        "chunk_id": "blake3-256",
        "chunker": {
            "algorithm": "fastcdc-2020",
            "min_size": 65_536,
            "normal_size": 262_144,
            "max_size": 1_048_576,
            "normalization": 1,
            "seed": 0,
        },
        "metadata_chunker": {
            "algorithm": "fastcdc-2020",
            "min_size": 4096,
            "normal_size": 16_384,
            "max_size": 65_536,
            "normalization": 1,
            "seed": 0,
        },
        "capabilities": {"put_if_absent": True},
        "features": {
            "read": ("moves", "tensors-3"),
            "write": ("moves", "tensors-3"),
            "collect": ("moves", "tensors-3", "parts"),
        },
        "key_slots": (),
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"of tomorrow": 1},
        {"capabilities": {"put_if_absent": True, "of tomorrow": 1}},
        {
            "features": {
                "read": ("moves", "tensors-3"),
                "write": ("moves", "tensors-3"),
                "collect": ("moves", "tensors-3", "parts"),
                "of tomorrow": (),
            }
        },
        {"chunker": {**DATA_CHUNKER._asdict(), "of tomorrow": 1}},
    ],
)
def test_unknown_fields_are_ignored(changes):
    assert decode(**changes) == Header(STORE)


@pytest.mark.parametrize("missing", [(), *((operation,) for operation in OPERATIONS), OPERATIONS])
def test_a_store_knows_tensors_if_all_who_use_it_must(missing):
    features = {operation: ["moves"] + ["tensors-3"] * (operation not in missing) for operation in OPERATIONS}
    header = decode(features=features)
    assert header.knows_tensors == (not missing)
    for operation in OPERATIONS:
        check_features(header, operation)


@pytest.mark.parametrize("capabilities", [{}, {"put_if_absent": False}, {"put_if_absent": 1}, {"put_if_absent": None}])
def test_only_a_plain_yes_promises_put_if_absent(capabilities):
    assert decode(capabilities=capabilities).put_if_absent is False


@pytest.mark.parametrize(
    "changes",
    [{"chunk_id": "sha256"}, {"chunk_id": ""}, {"key_slots": [{}]}, {"chunk_id": "keyed", "key_slots": [1]}],
)
def test_encryption_and_other_chunk_ids_are_refused_as_too_new(changes):
    with pytest.raises(UnsupportedStore, match="encrypted or names its chunks"):
        decode(**changes)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [None, 7, b"x"])
def test_a_field_that_is_missing_or_of_another_type_is_damage(name, value):
    with pytest.raises(DamagedObject, match=f"field '{name}' is not|where a map belongs"):
        decode(**{name: value})


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("value", [None, "text", [1], [b"x"]])
def test_features_that_are_no_lists_of_names_are_damage(operation, value):
    with pytest.raises(DamagedObject, match=f"field '{operation}'"):
        decode(features={"read": (), "write": (), "collect": (), operation: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("algorithm", None),
        ("algorithm", "x" * 65),
        ("min_size", 63),
        ("min_size", 2**20 + 1),
        ("normal_size", 255),
        ("normal_size", 2**22 + 1),
        ("max_size", 1023),
        ("max_size", 2**24 + 1),
        ("normalization", -1),
        ("normalization", 4),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", 1.0),
    ],
)
@pytest.mark.parametrize("chunker", ["chunker", "metadata_chunker"])
def test_chunker_parameters_out_of_range_are_damage(chunker, name, value):
    with pytest.raises(DamagedObject, match=f"field '{name}' is not"):
        decode(**{chunker: {**CHUNKER, name: value}})


@pytest.mark.parametrize("sizes", [{"min_size": 32_768}, {"normal_size": 131_072}, {"max_size": 8192}])
def test_sizes_of_chunks_out_of_order_are_damage(sizes):
    with pytest.raises(DamagedObject, match="impossible chunker parameters"):
        decode(chunker={**CHUNKER, **sizes})


def test_an_algorithm_of_tomorrow_is_no_hindrance_for_readers():
    assert decode(chunker={**CHUNKER, "algorithm": "rabin"}).chunker.algorithm == "rabin"


@settings(deadline=None, max_examples=100)
@given(chunkers())
def test_a_header_takes_every_chunker_that_can_be_written(parameters):
    assert decode(chunker=parameters._asdict()).chunker == parameters
    assert Cutter(parameters).cuts(b"abc", final=True) == [3]


def test_a_header_over_its_limit_is_neither_written_nor_read():
    features = (("read", ("x" * MAX_HEADER_SIZE,)), ("write", ()), ("collect", ()))
    with pytest.raises(InvalidArgument, match="at most 65536"):
        Header(STORE, features=features).encode()
    with pytest.raises(DamagedObject, match="at most 65536 are allowed"):
        decode(more="x" * MAX_HEADER_SIZE)


def test_another_kind_of_object_is_no_header():
    with pytest.raises(DamagedObject, match="of kind b'C'"):
        Header.decode(encode_record(Kind.COMMIT, body()))


# --- features -----------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_store_without_features_is_open_to_everything(operation):
    check_features(Header(STORE), operation)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("demanding", OPERATIONS)
def test_an_unknown_feature_closes_the_operation_that_demands_it_and_no_other(operation, demanding):
    header = Header(STORE, features=((demanding, ("zeta", "alpha")),))
    if operation != demanding:
        check_features(header, operation)
        return
    with pytest.raises(UnsupportedStore, match=f"to {operation} this store a program must know alpha, zeta"):
        check_features(header, operation)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_feature_that_nobody_understands_any_more_says_what_to_do(operation):
    header = Header(STORE, features=((operation, ("moves", "tensors")),))
    with pytest.raises(UnsupportedStore, match="save them into a new store"):
        check_features(header, operation)
