"""`ShardedStep`: one step of a plan on one process, with communication hidden behind computation.

For each bucket: gather shards of momenta and buffers to the owners of their matrices, compute
directions there, scatter directions and buffers back to the shards.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from polarlight.execution.job import Executor, Job
from polarlight.execution.param_task import ParamSource, ParamTask, all_to_local
from polarlight.execution.sharded.collectives import ProcessMesh, shared_rows
from polarlight.execution.sharded.exchange import Groups, Transfer, moved_as_one, run_rounds
from polarlight.execution.sharded.memory import PREFETCH
from polarlight.execution.sharded.schedule import Bucket, Fragment, ProcessSchedule
from polarlight.execution.sharded.specs import MATRIX
from polarlight.linalg import foreach
from polarlight.linalg.row_sums import Rows
from polarlight.linalg.slot import GRADIENT
from polarlight.rule import HOST_COUNTER


class ShardedStep:
    """One execution of a plan on this process.

    Args:
        groups: Processes that share the work, and the groups in which they exchange.
        schedule: Part of the plan that this process carries out.
        params: Parameters of the schedule; their tasks are loaded when they are needed, and their
            directions stored when they are complete.
        inner: Executor for the matrices that this process owns.
    """

    def __init__(
        self, groups: Groups, schedule: ProcessSchedule, params: ParamSource, inner: Executor
    ) -> None:
        """Keep the arguments; nothing is loaded or sent yet."""
        self.groups, self.schedule, self.params, self.inner = groups, schedule, params, inner
        self.mesh: ProcessMesh = groups.mesh
        self.matrices = schedule.plan.matrices
        self.completions = schedule.completions
        self.tasks: dict[int, ParamTask] = {}
        # Inputs of each parameter by name: the shard of its momentum, the shards of its buffers.
        self.shards: dict[int, dict[str, Tensor]] = {}
        # Results of each parameter: the direction in place of the momentum, and the same buffers. A
        # fragment of a direction is written when all of its matrix was sent or computed, so that it
        # can take the memory of its momentum.
        self.results: dict[int, dict[str, Tensor]] = {}
        # Whole tensors of matrices that this process owns, in the bucket at work: by (matrix
        # number, name), in the shape of the matrix's block of the parameter.
        self.blocks: dict[tuple[int, str], Tensor] = {}
        self._stored: set[int] = set()

    def run(self) -> None:
        """Run the step: gather, compute, scatter all buckets; pass directions to `params.store`."""
        buckets = self.schedule.buckets
        gathers = [self._start_gather(number) for number in range(min(PREFETCH + 1, len(buckets)))]
        # Row-wise parameters need no gather: they are computed while the first bucket is received.
        for numbers in self._rowwise_stacks():
            self._compute_rowwise(numbers)
        scatter: list[Transfer] = []
        for number, bucket in enumerate(buckets):
            self._finish_gather(bucket, gathers.pop(0))
            for transfer in (t for started in gathers for t in started):
                transfer.advance()
            self._compute(bucket)
            started = [
                Transfer(self.groups, replicated, exchange, self._whole_blocks, gather=False)
                for replicated, exchange in bucket.scatter.items()
            ]
            if number + PREFETCH + 1 < len(buckets):
                gathers.append(self._start_gather(number + PREFETCH + 1))
            if number:  # one bucket late, so that its scatter overlaps with this computation
                self._finish_scatter(number - 1, scatter)
            scatter = started
        if buckets:
            self._finish_scatter(len(buckets) - 1, scatter)
        self._store([n for n in self.params.numbers if n not in self._stored])

    def _load(self, param_numbers: Iterable[int]) -> None:
        """Load parameters not loaded yet (updates their momenta); fill `self.shards`, `results`."""
        missing = [n for n in dict.fromkeys(param_numbers) if n not in self.tasks]
        if not missing:
            return
        assert self._stored.isdisjoint(missing), "a momentum would be updated twice"
        tasks, buffered = self.params.load(missing), self.schedule.buffered
        named: list[tuple[int, str, Tensor]] = []  # buffers, and the gradient where it is read
        for n, task in zip(missing, tasks, strict=True):
            self.tasks[n] = task
            self.shards[n] = self.results[n] = {MATRIX: task.momentum}
            if n in buffered:
                named += [(n, name, task.state[name]) for name in buffered[n]]
        shards = all_to_local([x for _, _, x in named])
        for (n, name, _), shard in zip(named, shards, strict=True):
            self.shards[n][name] = shard
        for n, task in zip(missing, tasks, strict=True):
            if not task.expendable:
                self.results[n] = {**self.shards[n], MATRIX: torch.empty_like(task.momentum)}

    def _load_params_of(self, fragments: Sequence[Fragment]) -> None:
        """Load the parameters of fragments, if any parameter of the step is not loaded yet."""
        if len(self.tasks) + len(self._stored) < len(self.params.numbers):
            self._load([f.param for f in fragments])

    def _store(self, param_numbers: Sequence[int]) -> None:
        """Pass parameters' directions to `params.store`; advance host counters; drop the tasks."""
        self._load(param_numbers)  # those of which this process has no part
        for n in param_numbers:
            if HOST_COUNTER in self.tasks[n].state:
                self.tasks[n].state[HOST_COUNTER].add_(1)
            del self.tasks[n], self.shards[n]
        self._stored.update(param_numbers)
        if param_numbers:
            directions = [self.results.pop(n)[MATRIX] for n in param_numbers]
            self.params.store(param_numbers, directions)

    def _rowwise_stacks(self) -> Iterator[list[int]]:
        """Yield numbers of equal row-wise parameters, lists of at most `bucket_bytes` each."""
        alike: dict[Hashable, list[int]] = {}
        for number, rowwise in self.schedule.rowwise.items():
            spec, parameter = self.schedule.plan.params[number], self.params.parameter(number)
            layouts = tuple(spec.layouts.items()), tuple(spec.dtypes.items())
            key = (rowwise.row_axes, layouts, id(spec.rule), parameter.dtype)
            alike.setdefault(key, []).append(number)
        limit = self.schedule.plan.options.bucket_bytes
        for numbers in alike.values():
            # By the largest shard: processes with smaller ones come to the same sums.
            layout = self.schedule.plan.params[numbers[0]].layouts[MATRIX]
            largest = prod(layout.local_shape((0,) * len(layout.mesh)))
            nbytes = largest * self.params.parameter(numbers[0]).element_size()
            count = max(1, limit // nbytes)
            yield from (numbers[k : k + count] for k in range(0, len(numbers), count))

    def _compute_rowwise(self, param_numbers: Sequence[int]) -> None:
        """Compute and store equal parameters' directions on local rows; all-reduce sums of rows."""
        self._load(param_numbers)
        task, shards = (
            self.tasks[param_numbers[0]],
            [self.shards[number] for number in param_numbers],
        )
        device, home = self.mesh.device, shards[0][MATRIX].device
        stacked = {
            name: torch.stack([own[name] for own in shards]) if len(param_numbers) > 1 else x
            for name, x in shards[0].items()
        }
        inputs = {name: x.to(device, non_blocking=True) for name, x in stacked.items()}
        M = inputs.pop(MATRIX)  # [stacked, ..., rows of this process, n]
        rows = shared_rows(task.parameter, self.schedule.rowwise[param_numbers[0]].row_axes)
        D = task.rule.direction_on_rows(M, rows, inputs).to(home)
        inputs = {name: x.to(home) for name, x in inputs.items() if name != GRADIENT}
        many = len(param_numbers) > 1
        for k, number in enumerate(param_numbers):
            self.results[number][MATRIX].copy_(D[k] if many else D)
            for name, x in inputs.items():
                own = x[k] if many else x
                if own is not shards[k][name]:  # a copy: stacked, or on the mesh's device
                    shards[k][name].copy_(own)
        self._store(param_numbers)

    def _start_gather(self, bucket_number: int) -> list[Transfer]:
        """Load what is sent; start to send shards to the owners of a bucket's matrices."""
        self._load(self.schedule.sent_params[bucket_number])
        return [
            Transfer(self.groups, replicated, exchange, self._loaded_shards, gather=True)
            for replicated, exchange in self.schedule.buckets[bucket_number].gather.items()
        ]

    def _finish_gather(self, bucket: Bucket, gather: list[Transfer]) -> None:
        """Wait for a gather; fill `self.blocks` of a bucket from own and received shards."""
        self._load(self.matrices[number].param for number in bucket.matrices)
        for number in bucket.matrices:
            if number in bucket.local:  # read in place, without assembly
                continue
            matrix = self.matrices[number]
            dtypes = self.schedule.plan.params[matrix.param].dtypes
            for name, block in matrix.blocks.items():
                self.blocks[number, name] = torch.empty(
                    block.lengths, dtype=dtypes[name], device=self.mesh.device
                )
        own = bucket.own_fragments
        for whole, shard in zip(self._block_views(own), self._shard_views(own), strict=True):
            whole.copy_(shard)
        for transfer in gather:
            transfer.finish(self._whole_blocks)

    def _compute(self, bucket: Bucket) -> None:
        """Compute directions of a bucket's owned matrices; copy what stays here to the results."""
        # Matrices held in full are read in place, copied only if the mesh computes on another
        # device. One fragment per tensor of such a matrix, as its indices are contiguous.
        held = self.schedule.local_fragments
        local = [f for n in bucket.matrices if n in bucket.local for f in held[n]]
        shards = self._shard_views(local)
        if any(shard.device.type != self.mesh.device for shard in shards):
            shards = moved_as_one(shards, self.mesh.device)
        for fragment, shard in zip(local, shards, strict=True):
            self.blocks[fragment.matrix, fragment.name] = shard
        # Shared ones first: the others of the node come to them at the same time.
        shared = [n for n in bucket.matrices if n in self.schedule.shared]
        directions = self._compute_shared(shared)
        alone = [n for n in bucket.matrices if n not in self.schedule.shared]
        jobs = [self._job(number) for number in alone]
        directions |= zip(alone, self.inner.directions(jobs), strict=True)
        for number, D in directions.items():
            block = self.matrices[number].blocks[MATRIX]
            # The direction [m, n] replaces the momentum, in the layout of the block.
            D = D.to(self.blocks[number, MATRIX].dtype)
            self.blocks[number, MATRIX] = (D.mT if block.transposed else D).reshape(block.lengths)
        self._store_local(local)
        own = [f for f in bucket.own_fragments if f.name != GRADIENT]  # read, never changed
        for output, whole in zip(self._result_views(own), self._block_views(own), strict=True):
            output.copy_(whole)

    def _compute_shared(self, matrix_numbers: Sequence[int]) -> dict[int, Tensor]:
        """Return {number: direction} of parts of shared matrices; all-reduces their sums.

        All processes of the node do so with their parts of the same matrices in the same order.
        """
        alike: dict[Hashable, list[int]] = {}
        for number in matrix_numbers:
            matrix = self.matrices[number]
            assert matrix.part is not None
            spec, ranks = self.schedule.plan.params[matrix.param], self.schedule.shared[number]
            # Parts of equal size are stacked whatever their order among the processes.
            order = ranks if max(matrix.part.shape) % matrix.part.count else tuple(sorted(ranks))
            key = order, matrix.part.shape, id(spec.rule), tuple(spec.dtypes.items())
            alike.setdefault(key, []).append(number)
        found: dict[int, Tensor] = {}
        for numbers in alike.values():
            part = self.matrices[numbers[0]].part
            assert part is not None
            jobs = [self._job(number) for number in numbers]
            lines = self.groups.shared_lines(self.schedule.shared[numbers[0]], max(part.shape))
            directions = directions_of_parts(jobs, lines, by_columns=part.by_columns)
            found |= zip(numbers, directions, strict=True)
        return found

    def _store_local(self, fragments: Sequence[Fragment]) -> None:
        """Copy directions of matrices held in full to the results; buffers too if moved."""
        pairs = []
        views = self._result_views(fragments), self._block_views(fragments)
        for fragment, output, block in zip(fragments, *views, strict=True):
            copied = output.device != block.device
            if fragment.name == MATRIX or (copied and fragment.name != GRADIENT):
                pairs.append((output, block))
        if pairs:
            outputs, results = (list(tensors) for tensors in zip(*pairs, strict=True))
            if outputs[0].device != results[0].device:
                results = moved_as_one(results, outputs[0].device)
            foreach.copy_(outputs, results)

    def _job(self, matrix_number: int) -> Job:
        """Return a matrix's job: momentum [m, n], and its buffers in the rule's shapes."""
        matrix = self.matrices[matrix_number]
        task, block = self.tasks[matrix.param], matrix.blocks[MATRIX]
        m, n = block.size

        def as_matrix(name: str) -> Tensor:
            """Return the block MATRIX or GRADIENT as [m, n], transposed if stored by columns."""
            X = self.blocks[matrix_number, name]
            return X.reshape(n, m).mT if block.transposed else X.reshape(m, n)

        M = as_matrix(MATRIX)  # [m, n]
        buffers = {
            name: self.blocks[matrix_number, name].view(shape)  # [p, q], as the rule's stages ask
            for name, shape in matrix.shapes.items()
            if name not in (MATRIX, GRADIENT, HOST_COUNTER)
        }
        if GRADIENT in matrix.shapes:
            buffers[GRADIENT] = as_matrix(GRADIENT)
        if matrix.counter is not None:
            # A copy: every process advances the counter itself, at the end of the step.
            index = tuple(
                slice(start, start + length)
                for start, length in zip(matrix.counter.starts, matrix.counter.lengths, strict=True)
            )
            counter = task.state[HOST_COUNTER][index]
            buffers[HOST_COUNTER] = counter.reshape(matrix.shapes[HOST_COUNTER]).clone()
        return Job(task.rule, M, buffers)

    def _finish_scatter(self, bucket_number: int, scatter: list[Transfer]) -> None:
        """Receive a bucket's results; broadcast to copies; store directions; free its blocks."""
        bucket = self.schedule.buckets[bucket_number]
        for transfer in scatter:
            transfer.finish(self._whole_results)

        def finished(round_number: int) -> None:
            """Store the directions that are complete after a round; -1 stands for the scatter."""
            self._store(self.completions.get((bucket_number, round_number), ()))

        finished(-1)
        run_rounds(self.groups, bucket.rounds, self._result_views, finished)
        for number in bucket.matrices:
            for name in self.matrices[number].blocks:
                del self.blocks[number, name]

    def _loaded_shards(self, fragments: Sequence[Fragment]) -> list[Tensor]:
        """Return the local momentum or buffer of each fragment's parameter; must be loaded."""
        return [self.shards[f.param][f.name] for f in fragments]

    def _whole_results(self, fragments: Sequence[Fragment]) -> list[Tensor]:
        """Return the whole local result (direction or buffer) of each fragment, loaded if not."""
        self._load_params_of(fragments)
        return [self.results[f.param][f.name] for f in fragments]

    def _whole_blocks(self, fragments: Sequence[Fragment]) -> list[Tensor]:
        """Return the whole tensor in `self.blocks` of each fragment; only on its owner."""
        return [self.blocks[f.matrix, f.name] for f in fragments]

    def _shard_views(self, fragments: Sequence[Fragment]) -> list[Tensor]:
        """Return fragments as views of local momenta and buffers, loaded if they are not yet."""
        self._load_params_of(fragments)
        return _views(self.shards, fragments)

    def _result_views(self, fragments: Sequence[Fragment]) -> list[Tensor]:
        """Return fragments as views of local results (direction, buffers), loaded if not yet."""
        self._load_params_of(fragments)
        return _views(self.results, fragments)

    def _block_views(self, fragments: Sequence[Fragment]) -> list[Tensor]:
        """Return fragments as views of the owner's assembled tensors in `self.blocks`."""
        return [self.blocks[f.matrix, f.name][f.segment.of_block] for f in fragments]


def directions_of_parts(jobs: Sequence[Job], lines: Rows, *, by_columns: bool) -> list[Tensor]:
    """Return one direction per part, computed as one batch with sums over `lines`; update buffers.

    Args:
        jobs: Rows, or columns, of matrices of equal shape, rule and dtype, with their buffers.
        lines: All rows, or columns, of each of these matrices.
        by_columns: Whether the parts are columns.
    """
    rule, first = jobs[0].rule, jobs[0]
    direction = rule.direction_on_columns if by_columns else rule.direction_on_rows
    if len(jobs) == 1:
        return [direction(first.matrix, lines, first.buffers)]
    M = torch.stack([job.matrix for job in jobs])  # [parts, m, n]
    buffers = {name: torch.stack([job.buffers[name] for job in jobs]) for name in first.buffers}
    D = direction(M, lines, buffers)
    for name, stacked in buffers.items():
        if name != GRADIENT:
            foreach.copy_([job.buffers[name] for job in jobs], list(stacked.unbind()))
    return list(D.unbind())


def _views(
    tensors: Mapping[int, Mapping[str, Tensor]], fragments: Sequence[Fragment]
) -> list[Tensor]:
    """Return fragments as views of local shards `tensors[param][name]`."""
    return [
        tensors[f.param][f.name]
        if f.segment.whole
        else tensors[f.param][f.name][f.segment.of_shard]
        for f in fragments
    ]
