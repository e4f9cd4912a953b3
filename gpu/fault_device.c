/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fault_device.c - a device that fails on purpose: it hands tasks to an inner device and spoils some of
 * them.  For tests and for `skvcd --fault`; costs nothing when it is not there.
 *
 * Spec: rules separated by commas, each op:fault[:every=N]
 *   op     encode, decode, copy, copy_in, move, fit, fit_layer, fit_model
 *   fault  eio, enomem      the task completes with that error
 *          corrupt          one bit is flipped.  copy: of the output; decode, copy_in: of the input;
 *                           encode: of the output, or, on a device that stages, of what the next move
 *                           delivers of it; move: of what it delivers
 *          delay_ms=N       the task completes N ms late
 *          stall_ms=N       from its completion on, nothing completes for N ms
 *          launch           start() fails with -EIO; the task is not started
 *          dead             the device dies: this task and all under way complete with -EIO, from then on
 *                           start() fails with -EIO, and dead() says so.  What is staged can still be
 *                           given back
 *   every  each N-th task of that op, from the N-th; 1 when it is missing
 *
 * A cancelled task completes with -ECANCELED whatever the rules say.
 *
 * Input in memory of the device is not ours to write: it is first fetched by a MOVE of our own (`fetch`),
 * spoilt in host memory and then read from there.
 *
 * Runs on the lane, but for the import calls, which go through.  While something is held back arm() says
 * "do not sleep", since no one else would wake the lane when its time has come.
 */
#include "gpu/device.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/clock.h"

#define RULES_MAX 16u
#define DELAY_MS_MAX 600000u
#define EVERY_MAX 1000000000u

enum fault_kind {
	FAULT_EIO,
	FAULT_ENOMEM,
	FAULT_CORRUPT,
	FAULT_DELAY,
	FAULT_STALL,
	FAULT_LAUNCH,
	FAULT_DEAD
};

struct rule {
	enum device_op op;
	enum fault_kind kind;
	uint32_t ms;
	uint32_t every;
	uint32_t seen;
};

struct spoilt {		/* an input that is read from a copy of ours */
	void *copy;	/* owned; NULL: none */
	const void *in; /* the task's own, put back */
	uint8_t place;
};

struct slot {			  /* a task under way */
	struct device_task *task; /* NULL: free */
	uint32_t faults;	  /* bits of enum fault_kind */
	uint32_t delay_ms;
	uint32_t stall_ms;
	uint32_t flip_outs; /* MOVE: bit i: of what copy[i] delivers */
	uint64_t number;    /* of tasks started */
	bool cancelled;	    /* by the lane, in time */
	bool fetching;	    /* the inner device has `fetch`, not the task */
	bool done;	    /* the inner device is finished with it */
	uint64_t done_ns;
	uint64_t release_ns;
	struct spoilt spoilt[DEVICE_COPIES_MAX]; /* of DECODE and COPY_IN: the first */
	struct device_task fetch;
};

struct bad_staged { /* a payload that is to be spoilt when it is moved */
	struct bad_staged *next;
	const uint8_t *staged;
	uint64_t bytes;
};

struct fault_device {
	struct device base;
	struct device_ops ops; /* those that the inner device has */
	struct device *inner;  /* owned */
	unsigned rules_count;
	struct rule rules[RULES_MAX];
	uint64_t stall_until_ns, started;
	_Atomic(int) dead;	     /* 0 or -EIO; written by the lane */
	struct bad_staged *bad;	     /* owned list */
	struct device_task **polled; /* owned; tasks_max */
	struct slot *slots;	     /* owned; tasks_max */
};

static const char *const op_names[DEVICE_OP_COUNT] = {
	"encode", "decode", "copy", "copy_in", "move", "fit", "fit_layer", "fit_model"
};

static struct fault_device *fault_device_of(struct device *d)
{
	return (struct fault_device *)d;
}

/* The slot of a task that the inner device gave back; of NULL: a free one. */
static struct slot *slot_of(struct fault_device *f, const struct device_task *task)
{
	for (unsigned i = 0; i < f->base.tasks_max; i++) {
		struct slot *s = &f->slots[i];

		if (s->task == task || (s->task && s->fetching && &s->fetch == task))
			return s;
	}
	return NULL;
}

static void flip_bit(void *buf, uint64_t bytes)
{
	if (bytes > 0)
		((uint8_t *)buf)[bytes / 2u] ^= 0x10;
}

static bool stages(const struct fault_device *f)
{
	return f->inner->ops->unstage != NULL;
}

/* ---- payloads to be spoilt when they are moved ---- */

static int bad_add(struct fault_device *f, const struct device_task *t)
{
	struct bad_staged *b = malloc(sizeof(*b));

	if (!b)
		return -ENOMEM;
	*b = (struct bad_staged){ .next = f->bad,
				  .staged = t->staged,
				  .bytes = t->info.encoded_bytes };
	f->bad = b;
	return 0;
}

static struct bad_staged **bad_find(struct fault_device *f, const void *address)
{
	struct bad_staged **at = &f->bad;

	while (*at && (uintptr_t)address - (uintptr_t)(*at)->staged >= (*at)->bytes)
		at = &(*at)->next;
	return at;
}

static void bad_drop(struct fault_device *f, const void *address)
{
	struct bad_staged **at = bad_find(f, address), *b = *at;

	if (!b)
		return;
	*at = b->next;
	free(b);
}

/* ---- what is to go wrong with a task ---- */

static bool slot_has(const struct slot *s, enum fault_kind kind)
{
	return (s->faults & 1u << kind) != 0;
}

/* Counts the task as well. */
static void slot_plan(struct fault_device *f, struct slot *s)
{
	for (unsigned i = 0; i < f->rules_count; i++) {
		struct rule *r = &f->rules[i];

		if (r->op != s->task->op || ++r->seen % r->every != 0)
			continue;
		s->faults |= 1u << r->kind;
		if (r->kind == FAULT_DELAY)
			s->delay_ms = r->ms;
		if (r->kind == FAULT_STALL)
			s->stall_ms = r->ms;
	}
}

/* Bit i: copy[i] of a MOVE delivers spoilt bytes. */
static uint32_t move_spoils(struct fault_device *f, const struct slot *s)
{
	const struct device_task *t = s->task;
	uint32_t mask = 0;

	if (t->op != DEVICE_MOVE || t->copies_count == 0)
		return 0;
	if (slot_has(s, FAULT_CORRUPT))
		mask |= 1u;
	for (uint32_t i = 0; i < t->copies_count; i++)
		if (t->copy[i].in_place == DEVICE_PLACE_DEVICE && *bad_find(f, t->copy[i].in))
			mask |= 1u << i;
	return mask;
}

static const void **task_input(struct device_task *t, unsigned i, uint8_t **ret_place,
			       uint64_t *ret_bytes)
{
	bool move = t->op == DEVICE_MOVE;

	*ret_place = move ? &t->copy[i].in_place : &t->in_place;
	*ret_bytes = move ? t->copy[i].bytes : t->in_bytes;
	return move ? &t->copy[i].in : &t->in;
}

static void slot_restore_input(struct slot *s)
{
	for (unsigned i = 0; i < DEVICE_COPIES_MAX; i++) {
		struct spoilt *p = &s->spoilt[i];
		uint64_t bytes;
		uint8_t *place;

		if (!p->copy)
			continue;
		*task_input(s->task, i, &place, &bytes) = p->in;
		*place = p->place;
		free(p->copy);
		p->copy = NULL;
	}
}

/* Let the task read a copy, which is filled now or by the fetch. */
static int slot_replace_input(struct slot *s, unsigned i)
{
	struct spoilt *p = &s->spoilt[i];
	struct device_copy *fetch;
	uint64_t bytes;
	uint8_t *place;
	const void **in = task_input(s->task, i, &place, &bytes);

	if (bytes == 0)
		return 0;
	p->copy = malloc(bytes);
	if (!p->copy)
		return -ENOMEM;
	p->in = *in;
	p->place = *place;
	if (*place == DEVICE_PLACE_DEVICE) {
		fetch = &s->fetch.copy[s->fetch.copies_count++];
		*fetch = (struct device_copy){ .in = *in,
					       .out = p->copy,
					       .bytes = bytes,
					       .in_place = DEVICE_PLACE_DEVICE,
					       .out_place = DEVICE_PLACE_HOST };
	} else {
		memcpy(p->copy, *in, bytes);
		flip_bit(p->copy, bytes);
	}
	*in = p->copy;
	*place = DEVICE_PLACE_HOST;
	return 0;
}

static int slot_spoil_input(struct slot *s, uint32_t moves)
{
	struct device_task *t = s->task;
	int r = 0;

	s->fetch = (struct device_task){ .op = DEVICE_MOVE, .background = t->background };
	if ((t->op == DEVICE_DECODE || t->op == DEVICE_COPY_IN) && slot_has(s, FAULT_CORRUPT))
		r = slot_replace_input(s, 0);
	for (uint32_t i = 0; i < DEVICE_COPIES_MAX && moves >> i != 0 && r == 0; i++) {
		if (!(moves >> i & 1u))
			continue;
		if (t->copy[i].out_place == DEVICE_PLACE_HOST)
			s->flip_outs |= 1u << i;
		else
			r = slot_replace_input(s, i);
	}
	return r;
}

/* ---- how a task ends ---- */

/* The task failed after all: nobody will ask for what it made. */
static void slot_fail(struct fault_device *f, struct slot *s, int res)
{
	struct device_task *t = s->task;

	if (t->op == DEVICE_ENCODE && t->res == 0 && t->staged && stages(f)) {
		bad_drop(f, t->staged);
		f->inner->ops->unstage(f->inner, t->staged);
		t->staged = NULL;
	}
	if (t->op >= DEVICE_FIT)
		t->ret_profile = codec_profile_free(t->ret_profile);
	t->res = res;
}

static void slot_spoil_output(struct fault_device *f, struct slot *s)
{
	struct device_task *t = s->task;

	for (uint32_t i = 0; i < DEVICE_COPIES_MAX; i++)
		if (s->flip_outs >> i & 1u)
			flip_bit(t->copy[i].out, t->copy[i].bytes);
	if (!slot_has(s, FAULT_CORRUPT))
		return;
	if (t->op == DEVICE_COPY_OUT)
		flip_bit(t->out, t->region->geom->raw_bytes);
	if (t->op == DEVICE_ENCODE && !stages(f))
		flip_bit(t->out, t->info.encoded_bytes);
	if (t->op == DEVICE_ENCODE && stages(f) && bad_add(f, t) < 0)
		slot_fail(f, s, -ENOMEM);
}

/* The inner device has finished: spoil the result, set the time it may be seen. */
static void slot_finish(struct fault_device *f, struct slot *s)
{
	uint64_t now = gpu_now_ns();
	int dead = atomic_load_explicit(&f->dead, memory_order_relaxed);

	slot_restore_input(s);
	s->fetching = false;
	s->done = true;
	s->done_ns = s->release_ns = now;
	if (s->cancelled)
		return;
	if (dead < 0) {
		slot_fail(f, s, dead);
		return;
	}
	if (s->task->res == 0)
		slot_spoil_output(f, s);
	if (slot_has(s, FAULT_EIO) || slot_has(s, FAULT_ENOMEM))
		slot_fail(f, s, slot_has(s, FAULT_EIO) ? -EIO : -ENOMEM);
	s->release_ns = now + s->delay_ms * 1000000ull;
	if (s->stall_ms > 0 && f->stall_until_ns < now + s->stall_ms * 1000000ull)
		f->stall_until_ns = now + s->stall_ms * 1000000ull;
}

/* The input has been fetched: spoil it and let the task have it. */
static void slot_fetched(struct fault_device *f, struct slot *s)
{
	int r = s->fetch.res;

	s->fetching = false;
	for (unsigned i = 0; i < s->fetch.copies_count; i++)
		flip_bit(s->fetch.copy[i].out, s->fetch.copy[i].bytes);
	if (r == 0)
		r = atomic_load_explicit(&f->dead, memory_order_relaxed);
	if (r == 0)
		r = f->inner->ops->start(f->inner, s->task);
	if (r < 0) {
		s->task->res = r;
		slot_finish(f, s);
	}
}

static void device_die(struct fault_device *f)
{
	atomic_store_explicit(&f->dead, -EIO, memory_order_relaxed);
	f->stall_until_ns = 0;
	for (unsigned i = 0; i < f->base.tasks_max; i++) {
		struct slot *s = &f->slots[i];

		if (!s->task)
			continue;
		s->release_ns = 0;
		if (s->done && !s->cancelled)
			slot_fail(f, s, -EIO);
		/* What waits for an event would never come back. */
		if (!s->done && f->inner->ops->cancel)
			(void)f->inner->ops->cancel(f->inner, s->fetching ? &s->fetch : s->task);
	}
}

/* ---- the device ---- */

static int slot_start(struct fault_device *f, struct slot *s)
{
	struct device_task *t = s->task;
	uint32_t moves = move_spoils(f, s);
	int r = slot_spoil_input(s, moves);

	s->fetching = s->fetch.copies_count > 0;
	if (r == 0)
		r = f->inner->ops->start(f->inner, s->fetching ? &s->fetch : t);
	if (r < 0) {
		slot_restore_input(s);
		return r;
	}
	for (uint32_t i = 0; i < DEVICE_COPIES_MAX; i++) {
		const void *in = s->spoilt[i].copy ? s->spoilt[i].in : t->copy[i].in;

		if (moves >> i & 1u)
			bad_drop(f, in);
	}
	return 0;
}

static int fault_device_start(struct device *dev, struct device_task *task)
{
	struct fault_device *f = fault_device_of(dev);
	int r = atomic_load_explicit(&f->dead, memory_order_relaxed);
	struct slot *s = slot_of(f, NULL);

	if (r < 0)
		return r;
	if (!s)
		return -EAGAIN;
	*s = (struct slot){ .task = task, .number = ++f->started };
	slot_plan(f, s);
	if (slot_has(s, FAULT_DEAD)) {
		task->res = 0;
		if (task->op == DEVICE_ENCODE)
			task->staged = NULL;
		task->ret_profile = NULL;
		task->busy_ns = 0;
		atomic_store_explicit(&task->segments_done, 0, memory_order_relaxed);
		s->done = true;
		s->done_ns = gpu_now_ns();
		device_die(f);
		return 0;
	}
	r = slot_has(s, FAULT_LAUNCH) ? -EIO : slot_start(f, s);
	if (r < 0)
		s->task = NULL;
	return r;
}

/* Tasks of one sequence come back in order. */
static bool slot_waits(const struct fault_device *f, const struct slot *s)
{
	for (unsigned i = 0; s->task->sequence && i < f->base.tasks_max; i++)
		if (f->slots[i].task && f->slots[i].task->sequence == s->task->sequence &&
		    f->slots[i].number < s->number)
			return true;
	return false;
}

static unsigned fault_device_poll(struct device *dev, struct device_task **ret_done, unsigned max)
{
	struct fault_device *f = fault_device_of(dev);
	unsigned n = f->inner->ops->poll(f->inner, f->polled, dev->tasks_max), done = 0;
	uint64_t now;

	for (unsigned i = 0; i < n; i++) {
		struct slot *s = slot_of(f, f->polled[i]);

		assert(s && !s->done);
		if (s->fetching)
			slot_fetched(f, s);
		else
			slot_finish(f, s);
	}
	now = gpu_now_ns();
	if (now < f->stall_until_ns)
		return 0;
	for (unsigned i = 0; i < dev->tasks_max && done < max; i++) {
		struct slot *s = &f->slots[i];

		if (s->task && s->done && now >= s->release_ns && !slot_waits(f, s)) {
			ret_done[done++] = s->task;
			s->task = NULL;
		}
	}
	return done;
}

static int fault_device_arm(struct device *dev)
{
	struct fault_device *f = fault_device_of(dev);

	for (unsigned i = 0; i < dev->tasks_max; i++)
		if (f->slots[i].task && f->slots[i].done)
			return 0;
	return f->inner->ops->arm(f->inner);
}

static void fault_device_disarm(struct device *dev)
{
	struct fault_device *f = fault_device_of(dev);

	f->inner->ops->disarm(f->inner);
}

static struct device *fault_device_free(struct device *dev)
{
	struct fault_device *f = fault_device_of(dev);

	if (f->inner)
		f->inner->ops->free(f->inner);
	for (unsigned i = 0; f->slots && i < dev->tasks_max; i++)
		if (f->slots[i].task)
			slot_restore_input(&f->slots[i]);
	while (f->bad)
		bad_drop(f, f->bad->staged);
	free(f->polled);
	free(f->slots);
	free(f);
	return NULL;
}

static int fault_device_cancel(struct device *dev, struct device_task *task)
{
	struct fault_device *f = fault_device_of(dev);
	struct slot *s = slot_of(f, task);

	assert(s);
	if (s->done || s->cancelled)
		return 0;
	s->cancelled = f->inner->ops->cancel(f->inner, s->fetching ? &s->fetch : task) == 1;
	return s->cancelled;
}

static void fault_device_unstage(struct device *dev, void *staged)
{
	struct fault_device *f = fault_device_of(dev);

	bad_drop(f, staged);
	f->inner->ops->unstage(f->inner, staged);
}

static struct device *inner_of(struct device *dev)
{
	return fault_device_of(dev)->inner;
}

static int fault_device_can_encode(struct device *dev, const struct codec_geometry *g,
				   const struct codec_profile *profile, uint8_t speculator)
{
	return inner_of(dev)->ops->can_encode(inner_of(dev), g, profile, speculator);
}

static int fault_device_can_decode(struct device *dev, const struct codec_geometry *g,
				   const struct codec_profile *profile, const void *payload,
				   uint64_t payload_bytes)
{
	return inner_of(dev)->ops->can_decode(inner_of(dev), g, profile, payload, payload_bytes);
}

static int fault_device_host_register(struct device *dev, void *base, uint64_t bytes)
{
	return inner_of(dev)->ops->host_register(inner_of(dev), base, bytes);
}

static void fault_device_host_unregister(struct device *dev, void *base, uint64_t bytes)
{
	inner_of(dev)->ops->host_unregister(inner_of(dev), base, bytes);
}

static int fault_device_pool_memory(struct device *dev, uint64_t bytes, void **ret_base)
{
	return inner_of(dev)->ops->pool_memory(inner_of(dev), bytes, ret_base);
}

static int fault_device_dead(struct device *dev)
{
	struct fault_device *f = fault_device_of(dev);
	int dead = atomic_load_explicit(&f->dead, memory_order_relaxed);

	if (dead == 0 && f->inner->ops->dead)
		dead = f->inner->ops->dead(f->inner);
	return dead;
}

/* What is held back counts as work that does not end. */
static uint64_t fault_device_busy_since(struct device *dev)
{
	struct fault_device *f = fault_device_of(dev);
	uint64_t since = f->inner->ops->busy_since ? f->inner->ops->busy_since(f->inner) : 0;

	for (unsigned i = 0; i < dev->tasks_max; i++) {
		const struct slot *s = &f->slots[i];

		if (s->task && s->done && (since == 0 || s->done_ns < since))
			since = s->done_ns;
	}
	return since;
}

static void fault_device_profile_gone(struct device *dev, const struct codec_profile *profile)
{
	inner_of(dev)->ops->profile_gone(inner_of(dev), profile);
}

static int fault_device_sequence_new(struct device *dev, const struct codec_geometry *g,
				     const struct codec_profile *profile,
				     struct device_sequence **ret)
{
	return inner_of(dev)->ops->sequence_new(inner_of(dev), g, profile, ret);
}

static const struct device_ops fault_device_ops = {
	.start = fault_device_start,
	.poll = fault_device_poll,
	.arm = fault_device_arm,
	.disarm = fault_device_disarm,
	.free = fault_device_free,
	.name = "fault",
	.cancel = fault_device_cancel,
	.unstage = fault_device_unstage,
	.can_encode = fault_device_can_encode,
	.can_decode = fault_device_can_decode,
	.host_register = fault_device_host_register,
	.host_unregister = fault_device_host_unregister,
	.pool_memory = fault_device_pool_memory,
	.dead = fault_device_dead,
	.busy_since = fault_device_busy_since,
	.profile_gone = fault_device_profile_gone,
};

/* Callers see by a NULL what the inner device has not. */
static struct device_ops fault_ops_like(const struct device_ops *inner)
{
	struct device_ops ops = fault_device_ops;

	if (!inner->cancel)
		ops.cancel = NULL;
	if (!inner->unstage)
		ops.unstage = NULL;
	if (!inner->can_encode)
		ops.can_encode = NULL;
	if (!inner->can_decode)
		ops.can_decode = NULL;
	if (!inner->host_register)
		ops.host_register = NULL;
	if (!inner->host_unregister)
		ops.host_unregister = NULL;
	if (!inner->pool_memory)
		ops.pool_memory = NULL;
	if (!inner->profile_gone)
		ops.profile_gone = NULL;
	if (inner->sequence_new)
		ops.sequence_new = fault_device_sequence_new;
	ops.sequence_free = inner->sequence_free; /* a sequence knows whose it is */
	ops.sequence_position = inner->sequence_position;
	ops.sequence_truncate = inner->sequence_truncate;
	ops.sequence_bytes = inner->sequence_bytes;
	return ops; /* dead and busy_since stay: the rules can kill and hold up any device */
}

/* ---- imports: the control thread's calls; nothing of ours is touched ---- */

static int fault_memory_open(struct device *dev, const struct device_import *im,
			     struct device_memory **ret_memory, void **ret_base, char *err)
{
	struct device *d = inner_of(dev);

	return d->import->memory_open(d, im, ret_memory, ret_base, err);
}

static void fault_memory_close(struct device *dev, struct device_memory *memory)
{
	inner_of(dev)->import->memory_close(inner_of(dev), memory);
}

static int fault_region_open(struct device *dev, struct device_region *region)
{
	return inner_of(dev)->import->region_open(inner_of(dev), region);
}

static void fault_region_close(struct device *dev, struct device_region *region)
{
	inner_of(dev)->import->region_close(inner_of(dev), region);
}

static int fault_event_open(struct device *dev, const uint8_t handle[DEVICE_HANDLE_BYTES],
			    struct device_event **ret_event, char *err)
{
	return inner_of(dev)->import->event_open(inner_of(dev), handle, ret_event, err);
}

static void fault_event_close(struct device *dev, struct device_event *event)
{
	inner_of(dev)->import->event_close(inner_of(dev), event);
}

static int fault_event_record(struct device *dev, struct device_event *event)
{
	int r = fault_device_dead(dev);

	return r < 0 ? r : inner_of(dev)->import->event_record(inner_of(dev), event);
}

static const struct device_import_ops fault_import_ops = {
	.memory_open = fault_memory_open,
	.memory_close = fault_memory_close,
	.region_open = fault_region_open,
	.region_close = fault_region_close,
	.event_open = fault_event_open,
	.event_close = fault_event_close,
	.event_record = fault_event_record,
};

/* ---- the spec ---- */

static int number_parse(const char *text, uint32_t max, uint32_t *ret_number)
{
	unsigned long v;
	char *end;

	if (*text < '0' || *text > '9')
		return -EINVAL;
	errno = 0;
	v = strtoul(text, &end, 10);
	if (errno != 0 || *end != '\0' || v == 0 || v > max)
		return -EINVAL;
	*ret_number = (uint32_t)v;
	return 0;
}

static int fault_parse(const char *text, struct rule *r)
{
	if (strcmp(text, "eio") == 0)
		r->kind = FAULT_EIO;
	else if (strcmp(text, "enomem") == 0)
		r->kind = FAULT_ENOMEM;
	else if (strcmp(text, "corrupt") == 0)
		r->kind = FAULT_CORRUPT;
	else if (strcmp(text, "launch") == 0)
		r->kind = FAULT_LAUNCH;
	else if (strcmp(text, "dead") == 0)
		r->kind = FAULT_DEAD;
	else if (strncmp(text, "delay_ms=", 9) == 0)
		r->kind = FAULT_DELAY;
	else if (strncmp(text, "stall_ms=", 9) == 0)
		r->kind = FAULT_STALL;
	else
		return -EINVAL;
	if (r->kind == FAULT_DELAY || r->kind == FAULT_STALL)
		return number_parse(text + 9, DELAY_MS_MAX, &r->ms);
	return r->kind == FAULT_CORRUPT && r->op >= DEVICE_FIT ? -EINVAL : 0;
}

static int rule_parse(char *text, struct rule *ret_rule)
{
	struct rule r = { .op = DEVICE_OP_COUNT, .every = 1 };
	char *save = NULL, *op = strtok_r(text, ":", &save), *fault, *every;

	fault = op ? strtok_r(NULL, ":", &save) : NULL;
	every = fault ? strtok_r(NULL, ":", &save) : NULL;
	if (!fault || (every && strtok_r(NULL, ":", &save)))
		return -EINVAL;
	for (unsigned i = 0; i < DEVICE_OP_COUNT; i++)
		if (strcmp(op, op_names[i]) == 0)
			r.op = (enum device_op)i;
	if (r.op == DEVICE_OP_COUNT || fault_parse(fault, &r) < 0)
		return -EINVAL;
	if (every &&
	    (strncmp(every, "every=", 6) != 0 || number_parse(every + 6, EVERY_MAX, &r.every) < 0))
		return -EINVAL;
	*ret_rule = r;
	return 0;
}

static int rules_parse(struct fault_device *f, const char *spec)
{
	char *text = strdup(spec), *save = NULL;
	int r = text ? 0 : -ENOMEM;

	for (char *at = text ? strtok_r(text, ",", &save) : NULL; at && r == 0;
	     at = strtok_r(NULL, ",", &save)) {
		if (f->rules_count == RULES_MAX)
			r = -EINVAL;
		else
			r = rule_parse(at, &f->rules[f->rules_count++]);
	}
	if (r == 0 && f->rules_count == 0)
		r = -EINVAL;
	free(text);
	return r;
}

int fault_device_new(struct device *inner, const char *spec, struct device **ret_device)
{
	struct fault_device *f = calloc(1, sizeof(*f));
	int r;

	if (!f)
		return -ENOMEM;
	f->ops = fault_ops_like(inner->ops);
	f->base = (struct device){ .ops = &f->ops,
				   .import = inner->import ? &fault_import_ops : NULL,
				   .facts = inner->facts,
				   .tasks_max = inner->tasks_max,
				   .sequence_tasks = inner->sequence_tasks };
	f->polled = calloc(inner->tasks_max, sizeof(struct device_task *));
	f->slots = calloc(inner->tasks_max, sizeof(*f->slots));
	r = f->polled && f->slots ? rules_parse(f, spec) : -ENOMEM;
	if (r < 0) {
		fault_device_free(&f->base); /* without inner: it stays the caller's */
		return r;
	}
	f->inner = inner;
	*ret_device = &f->base;
	return 0;
}
