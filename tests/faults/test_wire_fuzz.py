"""Thousands of malformed requests to a real server: each is refused, none changes anything or tells of others."""

import struct
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2, service_pb2_grpc

from longrec.config import EngineConfig
from longrec.protocol import CANDIDATE, EVENT, ITEMS, SCORES, STATE, USER
from longrec.server.faults.ledger import Book
from longrec.server.faults.rig import make_rig, processes
from longrec.server.faults.subject import Subject
from longrec.server.faults.wire import Fate

pytestmark = pytest.mark.server

VICTIM, NEIGHBOUR = "victim", "neighbour-5e3c7a91"
MAX_EVENTS, MAX_CANDIDATES, MAX_K = 40, 20, 97
LENGTH = 5  # of either user's log
REQUESTS = 2_500
PATIENCE_SECONDS = 60.0
# what a server says to a request that can't be served as it is; the last is for what protobuf itself can't read
REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.OUT_OF_RANGE,
}


@pytest.fixture(scope="module")
def rig():
    limits = {"max_events_per_request": MAX_EVENTS, "max_candidates": MAX_CANDIDATES, "max_k": MAX_K}
    assert set(limits) <= set(EngineConfig.model_fields)
    with make_rig(Subject(), durability="none", **limits) as rig:
        yield rig


def tensor(kind, shape, data):
    return [kind, list(shape), data]


def events(rows):
    rows = np.array(rows, "<i8").reshape(1, -1, 3)
    return tensor("INT64", rows.shape, rows.tobytes())


def text(*values):
    return tensor("BYTES", [len(values), 1], b"".join(struct.pack("<I", len(value)) + value for value in values))


def valid():
    """A request that would be taken: the next event of the victim."""
    return {
        "inputs": {
            USER: text(VICTIM.encode()),
            EVENT: events([[LENGTH, 3, 9]]),
            CANDIDATE: tensor("INT64", [1, 0], b""),
        },
        "outputs": [STATE, ITEMS, SCORES],
        "parameters": {},
    }


def message_of(request):
    message = service_pb2.ModelInferRequest(
        model_name="recommender",
        inputs=[{"name": name, "datatype": kind, "shape": dims} for name, (kind, dims, _) in request["inputs"].items()],
        outputs=[{"name": name} for name in request["outputs"]],
        raw_input_contents=[data for _, _, data in request["inputs"].values()],
    )
    for name, (field, value) in request["parameters"].items():
        setattr(message.parameters[name], field, value)
    return message


INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
NAMES = st.sampled_from([USER, EVENT, CANDIDATE])
KINDS = st.sampled_from(
    ["BOOL", "UINT8", "INT32", "UINT64", "FP16", "FP32", "FP64", "BF16", "", "int64", "INT65", "\0"]
)


@st.composite
def wrong_kinds(draw):
    request, name = valid(), draw(NAMES)
    request["inputs"][name][0] = draw(KINDS)
    return message_of(request)


@st.composite
def wrong_shapes(draw):
    """A shape that isn't the tensor's: another rank, batch, number of columns, or a size that is negative or huge.

    (A batch that is 0 in its lower 32 bits, in one input, is taken by the server itself for that of the others.)
    """
    request, name = valid(), draw(NAMES)
    shape = request["inputs"][name][1]
    change = draw(st.sampled_from(["rank", "more", "batch", "size", "any"]))
    if change == "rank":
        shape.pop(draw(st.integers(0, len(shape) - 1)))
    elif change == "more":
        shape.insert(draw(st.integers(0, len(shape))), draw(st.sampled_from([1, 1, 2, 0])))
    elif change == "batch":
        shape[0] = draw(st.sampled_from([2, 3, 255, 257, -1, 1 << 31]))
    elif change == "size":
        shape[draw(st.integers(1, len(shape) - 1))] = draw(st.sampled_from([-1, -2, 7, 1 << 31, 1 << 62, -(1 << 63)]))
    else:
        fresh = draw(st.lists(INT64, max_size=5).filter(lambda dims: dims != shape and dims[:1] != [0]))
        request["inputs"][name][1] = fresh
    return message_of(request)


@st.composite
def wrong_bytes(draw):
    """Contents that are cut off, too long, or missing. (Those that belong to no input are the server's to ignore.)"""
    request, name = valid(), draw(st.sampled_from([USER, EVENT]))
    data = request["inputs"][name][2]
    change = draw(st.sampled_from(["cut", "longer", "length", "missing"]))
    if change == "cut":
        request["inputs"][name][2] = data[: draw(st.integers(0, len(data) - 1))]
    elif change == "longer":
        request["inputs"][name][2] = data + draw(st.binary(min_size=1, max_size=40))
    elif change == "length":  # of the key, as BYTES carry it
        wrong = draw(st.integers(0, (1 << 32) - 1).filter(lambda length: length != len(VICTIM)))
        request["inputs"][USER][2] = struct.pack("<I", wrong) + VICTIM.encode()
    message = message_of(request)
    if change == "missing":
        message.raw_input_contents.pop(draw(st.integers(0, 1)))
    return message


@st.composite
def wrong_users(draw):
    request = valid()
    broken = st.binary(min_size=1, max_size=40).filter(lambda key: not is_utf8(key))
    long = st.integers(257, 3_000).map(lambda length: b"u" * length)
    request["inputs"][USER] = text(draw(st.one_of(st.just(b""), broken, long)))
    return message_of(request)


def is_utf8(key):
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True


@st.composite
def wrong_events(draw):
    """Rows of a right shape whose numbers can't be."""
    row = st.tuples(st.integers(0, 1 << 40), st.integers(0, 200), st.integers(0, 1 << 40))
    change = draw(st.sampled_from(["jump", "mixed", "position", "item", "time", "many"]))
    if change == "jump":
        step = draw(INT64.filter(lambda step: step != LENGTH + 1 and step != -(1 << 63)))
        rows = [[LENGTH, 1, 1], [step, 2, 2]]
    elif change == "mixed":
        rows = draw(st.permutations([[LENGTH, 1, 1], [-1, 2, 2]]))
    elif change == "many":
        rows = [[LENGTH + n, 1, n] for n in range(draw(st.integers(MAX_EVENTS + 1, 3 * MAX_EVENTS)))]
    else:
        column, most = {"position": (0, -2), "item": (1, -2), "time": (2, -1)}[change]
        rows = [list(draw(row)) for _ in range(draw(st.integers(1, 3)))]
        for n, filled in enumerate(rows):
            filled[0] = LENGTH + n
        rows[draw(st.integers(0, len(rows) - 1))][column] = draw(st.integers(-(1 << 63), most))
    request = valid()
    request["inputs"][EVENT] = events(rows)
    return message_of(request)


@st.composite
def wrong_candidates(draw):
    items = draw(st.lists(st.integers(0, 96), max_size=MAX_CANDIDATES - 1))
    if draw(st.booleans()):
        items.insert(draw(st.integers(0, len(items))), draw(st.integers(-(1 << 63), -1)))
    else:
        items += [1] * (MAX_CANDIDATES + 1)
    request = valid()
    request["inputs"][CANDIDATE] = tensor("INT64", [1, len(items)], np.array(items, "<i8").tobytes())
    return message_of(request)


LETTERS = st.characters(codec="utf-8", exclude_characters="\0")
STRINGS = st.text(LETTERS, max_size=30)
DOUBLES = st.floats(allow_nan=False, allow_infinity=False)
ANY = st.one_of(
    INT64.map(lambda value: ("int64_param", value)),
    st.booleans().map(lambda value: ("bool_param", value)),
    STRINGS.map(lambda value: ("string_param", value)),
    DOUBLES.map(lambda value: ("double_param", value)),
)
KNOWN = {"k", "horizon", "beam", "exclude_seen", "exclude", "categories", "explain", "scores"}
# names that the server itself gives a meaning, and takes out before the model sees them
SERVERS = {"sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "binary_data_output", "headers"}


@st.composite
def wrong_parameters(draw):
    request = valid()
    not_integer = st.one_of(
        st.booleans().map(lambda value: ("bool_param", value)),
        STRINGS.map(lambda value: ("string_param", value)),
        DOUBLES.filter(lambda value: value != int(value)).map(lambda value: ("double_param", value)),
    )
    outside = st.one_of(st.integers(-(1 << 63), 0), st.integers(1 << 14, (1 << 63) - 1))
    unknown = st.text(LETTERS, min_size=1, max_size=20).filter(
        lambda name: name not in KNOWN | SERVERS and not name.startswith("triton_")
    )
    change = draw(st.sampled_from(["number", "outside", "unknown", "boolean", "scores", "exclude", "categories"]))
    if change == "number":
        name, value = draw(st.sampled_from(["k", "horizon", "beam", "explain"])), draw(not_integer)
    elif change == "outside":
        name, value = draw(st.sampled_from(["k", "horizon", "beam"])), ("int64_param", draw(outside))
    elif change == "unknown":
        name, value = draw(unknown), draw(ANY)
    elif change == "boolean":
        name, value = "exclude_seen", draw(ANY.filter(lambda pair: pair[0] != "bool_param"))
    elif change == "scores":
        name, value = "scores", draw(ANY.filter(lambda pair: pair[1] not in ("logit", "probability")))
    elif change == "exclude":
        name, value = (
            "exclude",
            ("string_param", draw(st.sampled_from(["-1", "a", "1,-2", "1;2", "1.5", "{1}", "9" * 30]))),
        )
    else:
        name, value = "categories", ("string_param", draw(st.sampled_from(["none such", "a,b", "\x01"])))
    request["parameters"][name] = value
    return message_of(request)


@st.composite
def wrong_names(draw):
    """Inputs that are missing, doubled or unknown; outputs that don't exist; memory that nobody registered."""
    message = message_of(valid())
    change = draw(st.sampled_from(["missing", "double", "unknown", "output", "region"]))
    which = draw(st.integers(0, 2))
    if change == "missing":
        del message.inputs[which]
        del message.raw_input_contents[which]
    elif change == "double":
        message.inputs.append(message.inputs[which])
        message.raw_input_contents.append(message.raw_input_contents[which])
    elif change == "unknown":
        message.inputs[which].name = draw(STRINGS.filter(lambda name: name not in (USER, EVENT, CANDIDATE)))
    elif change == "output":
        message.outputs[which].name = draw(STRINGS.filter(lambda name: name not in (STATE, ITEMS, SCORES, "BECAUSE")))
    else:
        region = message.inputs[which].parameters
        region["shared_memory_region"].string_param = draw(STRINGS)
        region["shared_memory_byte_size"].int64_param = draw(st.integers(0, 1 << 40))
        del message.raw_input_contents[which]
    return message


@st.composite
def one_bad_of_a_batch(draw):
    """A bulk request that holds the victim's valid part, and a bad one."""
    request = valid()
    row = [[LENGTH, 3, 9]], [[0, -draw(st.integers(2, 1 << 40)), 1]]
    both = np.array(draw(st.permutations(row)), "<i8")
    request["inputs"][USER] = text(VICTIM.encode(), VICTIM.encode())
    request["inputs"][EVENT] = tensor("INT64", both.shape, both.tobytes())
    request["inputs"][CANDIDATE] = tensor("INT64", [2, 0], b"")
    return message_of(request)


MALFORMED = st.one_of(
    wrong_kinds(),
    wrong_shapes(),
    wrong_bytes(),
    wrong_users(),
    wrong_events(),
    wrong_candidates(),
    wrong_parameters(),
    wrong_names(),
    one_bad_of_a_batch(),
)


def test_malformed_requests_are_refused_and_change_nothing(rig):
    books = [Book(name, 97, seed) for seed, name in enumerate((VICTIM, NEIGHBOUR))]
    with rig.wire() as wire:
        for book in books:
            assert wire.send(book.user, book.make(LENGTH)).outcome().length == LENGTH
        before = [wire.send(book.user, k=MAX_K).outcome() for book in books]
    serving = processes(rig.repository)
    channel = grpc.insecure_channel(rig.url)
    stub, sent = service_pb2_grpc.GRPCInferenceServiceStub(channel), 0

    @settings(max_examples=REQUESTS, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(MALFORMED)
    def refuse(message):
        nonlocal sent
        sent += 1
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(message, timeout=PATIENCE_SECONDS)
        code, details = refused.value.code(), refused.value.details()
        assert code in REFUSALS, f"{code}: {details}"
        assert NEIGHBOUR not in details
        assert "Traceback" not in details

    refuse()
    assert sent >= 2_000
    channel.close()
    assert processes(rig.repository) == serving, "nothing died"
    with rig.wire() as wire:
        for book, was in zip(books, before, strict=True):
            answer = wire.send(book.user, k=MAX_K).outcome()
            assert (answer.fate, answer.length) == (Fate.OK, LENGTH)
            np.testing.assert_array_equal(answer.items, was.items)
            np.testing.assert_allclose(answer.scores, was.scores, atol=1e-6)
    log = rig.open_log()
    assert sorted(log.recent_users(100)) == sorted([VICTIM.encode(), NEIGHBOUR.encode()]), "nor did a user come up"
    log.close()


def test_many_at_once_are_refused_while_others_are_served(rig):
    """Malformed requests in a batch with valid ones leave these alone."""
    book = Book("between", 97, 9)
    bad = message_of({**valid(), "parameters": {"k": ("int64_param", 0)}})
    with ThreadPoolExecutor(1) as pool, rig.wire() as wire:
        refused = pool.submit(lambda: [wire.send_message(bad) for _ in range(200)])
        for n in range(50):
            outcome = wire.send(book.user, book.make(1), k=5).outcome()
            assert (outcome.fate, outcome.length) == (Fate.OK, n + 1)
        assert all(one.outcome().fate is Fate.REFUSED for one in refused.result())
