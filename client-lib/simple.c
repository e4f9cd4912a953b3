/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simple.c - skvc_put and skvc_get: one block, any memory, synchronous.  Built on the asynchronous calls
 * and on an arena of one block per namespace, made by the first call that needs it.
 *
 * A call whose time is over leaves its job to the daemon, which may be at work in that arena still: the next call
 * waits for it first, and gives back the lease of a lookup that was answered too late.  Where there is no next call,
 * that runs out by itself.
 */
#include <errno.h>
#include <string.h>

#include "client-lib/client.h"

/* The last one, that is; it is not waited for. */
static void give_back_late(struct skvc_session *s)
{
	uint64_t lease = s->late_lease, handle;
	struct client_job *job;

	s->late_lease = 0;
	if (!lease || client_submit_release(s, lease, true, &handle) < 0)
		return;
	job = client_job_find(s, handle);
	if (job)
		job->orphan = 1;
}

/* The namespace, with a one-block arena, packed form, in which nobody is at work. */
static int simple_begin(struct skvc_session *s, uint32_t ns, size_t bytes, uint64_t deadline_ns,
			struct client_namespace **ret_namespace)
{
	struct client_namespace *namespace = client_namespace_find(s, ns);
	struct skvc_arena *arena;
	uint32_t region;
	int r;

	if (!namespace)
		return client_error(s, -EINVAL, "no namespace %u", ns);
	if (bytes != namespace->block_raw_bytes)
		return client_error(s, -EINVAL, "%zu bytes, a block of this namespace has %llu",
				    bytes, (unsigned long long)namespace->block_raw_bytes);
	if (!namespace->simple_arena) {
		r = skvc_arena_new(s, bytes, &arena);
		if (r < 0)
			return r;
		r = skvc_register_host(s, ns, arena, 0, 1, NULL, &region);
		if (r < 0) {
			(void)skvc_arena_free(arena);
			return r;
		}
		namespace->simple_arena = arena;
		namespace->simple_region = region;
	}
	if (client_wait(s, client_job_is_over, &namespace->simple_job,
			client_left_ns(deadline_ns)) < 0)
		return client_error(
			s, -ETIME,
			"the daemon is still at an earlier put or get of this namespace");
	give_back_late(s);
	*ret_namespace = namespace;
	return 0;
}

static int refused(struct skvc_session *s, const struct skvc_completion *done, int res)
{
	return client_error(s, res, "%s", skvc_reason_text(done->reason));
}

int skvc_put(struct skvc_session *session, uint32_t ns, const struct skvc_key *key,
	     const void *data, size_t bytes)
{
	const uint32_t block = 0;
	struct skvc_store store = { .ns = ns, .count = 1, .keys = key, .blocks = &block };
	struct client_namespace *namespace;
	struct skvc_completion done;
	uint64_t deadline_ns;
	int r;

	r = client_enter(session);
	if (r < 0)
		return r;
	if (!key || !data)
		return client_error(session, -EINVAL, "key or data is NULL");
	deadline_ns = client_deadline_ns(session->timeout_ns);
	r = simple_begin(session, ns, bytes, deadline_ns, &namespace);
	if (r < 0)
		return r;
	memcpy(namespace->simple_arena->ptr, data, bytes);
	store.region = namespace->simple_region;
	r = client_submit_store(session, &store, true, &namespace->simple_job);
	if (r < 0)
		return r;
	r = client_finish(session, namespace->simple_job, client_left_ns(deadline_ns), &done);
	if (r < 0)
		return r;
	if (done.res < 0)
		return refused(session, &done, done.res);
	if (done.reason == SKVC_ABI_REASON_DUPLICATE)
		return refused(session, &done, -EEXIST);
	/* Taken in part is nothing taken, for one block. */
	return done.count ? 0 : refused(session, &done, -EAGAIN);
}

static int load_one(struct skvc_session *s, struct client_namespace *namespace, uint64_t lease,
		    uint64_t deadline_ns)
{
	const uint32_t block = 0;
	const struct skvc_load load = {
		.lease = lease, .region = namespace->simple_region, .count = 1, .blocks = &block
	};
	struct skvc_completion done;
	int r;

	r = client_submit_load(s, &load, true, &namespace->simple_job);
	if (r < 0)
		return r;
	r = client_finish(s, namespace->simple_job, client_left_ns(deadline_ns), &done);
	if (r < 0)
		return r;
	/* Lost, corrupt or evicted meanwhile: to this caller all of that is a miss. */
	if (done.res == -ENODATA || done.res == -ESTALE || (!done.res && done.count != 1))
		return refused(s, &done, -ENOENT);
	return done.res < 0 ? refused(s, &done, done.res) : 0;
}

int skvc_get(struct skvc_session *session, uint32_t ns, const struct skvc_key *key, void *data,
	     size_t bytes)
{
	const struct skvc_lookup lookup = { .ns = ns, .count = 1, .keys = key };
	struct client_namespace *namespace;
	struct skvc_completion done, released;
	uint64_t deadline_ns, job;
	int r;

	r = client_enter(session);
	if (r < 0)
		return r;
	if (!key || !data)
		return client_error(session, -EINVAL, "key or data is NULL");
	deadline_ns = client_deadline_ns(session->timeout_ns);
	r = simple_begin(session, ns, bytes, deadline_ns, &namespace);
	if (r < 0)
		return r;
	r = client_submit_lookup(session, &lookup, true, &job);
	if (r < 0)
		return r;
	r = client_finish(session, job, client_left_ns(deadline_ns), &done);
	if (r < 0)
		return r;
	if (done.res < 0)
		return refused(session, &done, done.res);
	if (!done.count)
		return refused(session, &done, -ENOENT);
	r = load_one(session, namespace, done.lease, deadline_ns);
	if (!r)
		memcpy(data, namespace->simple_arena->ptr, bytes);
	/* A lease that cannot be given back runs out by itself. */
	if (!client_submit_release(session, done.lease, true, &job))
		(void)client_finish(session, job, client_left_ns(deadline_ns), &released);
	return r;
}
