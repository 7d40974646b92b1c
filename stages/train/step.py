"""One step of the optimiser, on one screen, and its computation as one CUDA graph.

B images of a rank, M losses, C latent channels, h and w the latent's sides.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from stages.model.conditions import Condition, Context
from stages.model.sizes import LATENTS
from stages.model.streams import joined, predictions
from stages.model.transformer import Output
from stages.placement import Placement
from stages.train.batches import Named, split
from stages.train.cached_captions import CONTEXT, SEEN, with_dropped
from stages.train.cached_data import CachedData
from stages.train.compute import attention_of, autocast, precision_of, reshard, synchronised
from stages.train.meter import Measured
from stages.train.optim import (
    gradient_norm,
    learning_rate,
    make_replayable,
    set_learning_rate,
    update_weights,
)
from stages.train.randomness import Stream, seed_for
from stages.train.run import Run
from stages.train.terms.joint import noise_of
from stages.train.terms.run_terms import RunTerms, objective_of
from stages.train.terms.seen import Posed, Seen, Streamed
from stages.train.train_settings import TrainSettings

# What a step is made of on the device, from a batch and what is drawn: no number that the host
# decides may change in it.
Compute = Callable[[Named, Named], Measured]
# Steps before the one that is recorded, in which code is compiled and memory found.
FIRST_STEPS = 3


class Step:
    """Makes steps of a run: forward, backward, update, average. It never waits for the device.

    terms: those that the steps have.
    """

    def __init__(
        self,
        settings: TrainSettings,
        run: Run,
        terms: RunTerms,
        cached: CachedData,
        place: Placement,
    ) -> None:
        self._settings, self._run, self._terms = settings, run, terms
        self._objective = objective_of(settings)
        self._scaling = cached.scaling.to(place.device)
        self._null: Condition = torch.tensor(cached.classes, device=place.device)
        if cached.captions is not None:
            self._null = cached.captions.empty(place.device)
        self._device, self._precision = place.device, precision_of(settings, place.device)
        # On the device, where a recorded step reads them, like the learning rate.
        self._shares = {
            number: torch.tensor(share, device=place.device)
            for number, share in terms.shares(0).items()
        }
        self._rank = place.rank
        self._compute: Compute = self._made
        if place.device.type == "cuda":
            make_replayable(run.optimiser)
            if settings.compute.graph and place.world == 1:
                self._compute = Replayed(self._made, place.device)

    def __call__(self, batch: Named, drawn: Named) -> Measured:
        """Make the next step; what it measured is valid until the one after it."""
        run = self._run
        set_learning_rate(run.optimiser, learning_rate(self._settings, run.step))
        for number, share in self._terms.shares(run.step).items():
            self._shares[number].fill_(share)
        if run.model.config.dropout:
            # Of each process its own; the same when a run goes on.
            torch.manual_seed(seed_for(self._settings.seed, Stream.DROPOUT, run.step, self._rank))
        with attention_of(self._settings.compute.attention):
            measured = self._compute(batch, drawn)
        run.step += 1
        return measured

    def _made(self, batch: Named, drawn: Named) -> Measured:
        """Forward, backward, update, average: the same whatever the step, but for its inputs."""
        run, parts = self._run, self._settings.compute.micro_batches
        terms, totals = [], []
        for number, part in enumerate(zip(split(batch, parts), split(drawn, parts), strict=True)):
            with synchronised(run.network, is_last=number == parts - 1):
                losses = self._losses(*part)
                total = self._total(losses)
                run.scaler.scale(total / parts).backward()
            terms.append(losses.detach())
            totals.append(total.detach())
        norm = self._update()
        level = self._objective.level(drawn["time"])
        return Measured(torch.cat(terms, dim=1), level, torch.stack(totals).mean(), norm)

    def _losses(self, batch: Named, drawn: Named) -> Tensor:
        """Every loss of every image, float32 [M, B], with gradients."""
        time, run, terms = drawn["time"], self._run, self._terms
        posed = self._posed(batch, drawn)
        given = self._given(batch, drawn["dropped"])
        with autocast(self._precision, self._device):
            channels, class_token = joined({name: one.noisy for name, one in posed.items()})
            output = run.network(channels, time, given, terms.depths, class_token)
            projected = self._projected(output, drawn, given)
        predicted = predictions(output, run.model.config)
        noisy = posed[LATENTS].noisy
        predicted[LATENTS] = self._objective.compared(predicted[LATENTS], noisy, time)
        streams = {name: Streamed(*one, predicted[name]) for name, one in posed.items()}
        seen = Seen(batch, drawn, time, self._objective.level(time), streams, output.patches)
        taught = self._taught(seen, given)
        return torch.stack(
            [
                loss
                for number, term, _ in terms.every
                for loss in term.losses(
                    replace(seen, projected=projected.get(number), taught=taught.get(number, {}))
                )
            ]
        )

    def _given(self, batch: Named, dropped: Tensor) -> Condition:
        """What the model is told of the images, but of those for which it is dropped."""
        if isinstance(self._null, Context):
            context = Context(batch[CONTEXT], batch.get(SEEN))
            return with_dropped(context, dropped, self._null)
        return torch.where(dropped, self._null, batch["labels"])

    @torch.no_grad()
    def _taught(self, seen: Seen, given: Condition) -> dict[int, Mapping[int, Tensor]]:
        """The teacher's hidden tokens for each term that asks for them, by the terms' numbers."""
        objective, teacher, taught = self._objective, self._run.teacher, {}
        for number, term, _ in self._terms.every:
            if teacher is None or not term.teacher_depths:
                continue
            time = objective.time(term.teacher_level(seen.level, seen.drawn))
            streams = seen.streams.items()
            noisy = {name: objective.pose(one.clean, one.noise, time)[0] for name, one in streams}
            with autocast(self._precision, self._device):
                channels, class_token = joined(noisy)
                depths = term.teacher_depths
                taught[number] = teacher(channels, time, given, depths, class_token).patches
            reshard(teacher)
        return taught

    def _projected(self, output: Output, drawn: Named, given: Condition) -> dict[int, Tensor]:
        """What the terms' modules make of hidden tokens, by the terms' numbers."""
        modules, projected = self._run.modules, {}
        # What terms share is computed once.
        made: dict[tuple[nn.Module, tuple[int, ...], bool], Tensor] = {}
        for number, term, _ in self._terms.every:
            if number not in modules:
                continue
            key = modules[number], term.depths, term.sees_class_token
            if key not in made:
                seen = output.hidden if term.sees_class_token else output.patches
                told = (*term.told(drawn), drawn["time"], given) if term.is_told else ()
                made[key] = modules[number](*(seen[depth] for depth in term.depths), *told)
            projected[number] = made[key]
        return projected

    def _posed(self, batch: Named, drawn: Named) -> dict[str, Posed]:
        """What is diffused, by name."""
        # Moments [B, 2C, h, w] become latents [B, C, h, w], drawn anew at every step.
        clean = {LATENTS: self._scaling.sample(batch["moments"], drawn["posterior"])}
        noise = {LATENTS: drawn["noise"]}
        for term in self._terms.joint:
            clean[term.stream] = term.kept(term.clean(batch), drawn)
            noise[term.stream] = drawn[noise_of(term.stream)]
        posed = {
            name: Posed(x, noise[name], *self._objective.pose(x, noise[name], drawn["time"]))
            for name, x in clean.items()
        }
        given = {term.stream: term.given(posed[term.stream], drawn) for term in self._terms.joint}
        return posed | given

    def _total(self, losses: Tensor) -> Tensor:
        """What is minimised: the weighted sum of the means of losses [M, B]."""
        terms, total = self._terms, losses.new_zeros(())
        for number, weight, loss in zip(terms.owners, terms.weights, losses.unbind(), strict=True):
            mean = weight * loss.mean()
            total = total + (mean * self._shares[number] if number in self._shares else mean)
        return total

    def _update(self) -> Tensor:
        """Update weights and average; returns the norm of the gradient."""
        run = self._run
        run.scaler.unscale_(run.optimiser)
        norm = gradient_norm(run.optimiser)
        update_weights(run.optimiser, run.scaler, norm, self._settings.gradient_clip)
        for average in run.averages.values():
            average.update()
        return norm


class Replayed:
    """Computes a step, from the fourth on as a recording of it: a CUDA graph.

    A step launches thousands of kernels, each of which costs the host some ten microseconds: small
    models, and large ones in small batches, wait for the host. A graph is launched as a whole.
    Equal to the computation itself, bit by bit. What it returns is valid until the next call.
    """

    def __init__(self, compute: Compute, device: torch.device) -> None:
        self._compute = compute
        self._first_steps = FIRST_STEPS
        self._stream = torch.cuda.Stream(device)
        self._graph = torch.cuda.CUDAGraph()
        self._held: tuple[Named, Named, Measured] | None = None

    def __call__(self, batch: Named, drawn: Named) -> Measured:
        if self._first_steps > 0:
            self._first_steps -= 1
            return self._unrecorded(batch, drawn)
        self._held = self._held or self._recorded(batch, drawn)
        *held, measured = self._held
        for there, given in zip(held, (batch, drawn), strict=True):
            for name, tensor in given.items():
                there[name].copy_(tensor)
        self._graph.replay()
        return measured

    def _unrecorded(self, batch: Named, drawn: Named) -> Measured:
        # On the stream of the recording, where autograd then finds what it has set up.
        present = torch.cuda.current_stream()
        self._stream.wait_stream(present)
        with torch.cuda.stream(self._stream):
            measured = self._compute(batch, drawn)
        present.wait_stream(self._stream)
        for tensor in (*batch.values(), *drawn.values()):
            tensor.record_stream(self._stream)
        for tensor in measured:
            tensor.record_stream(present)
        return measured

    def _recorded(self, batch: Named, drawn: Named) -> tuple[Named, Named, Measured]:
        inputs = [{name: tensor.clone() for name, tensor in of.items()} for of in (batch, drawn)]
        with torch.cuda.graph(self._graph, stream=self._stream):
            return inputs[0], inputs[1], self._compute(*inputs)
