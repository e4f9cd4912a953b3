/* SPDX-License-Identifier: Apache-2.0 */
/*
 * simple.c - skvc_put and skvc_get: one block, any memory, synchronous.  Built on the asynchronous calls
 * and on an arena of one block per namespace, made by the first call that needs it.
 */
#include <errno.h>
#include <string.h>

#include "client-lib/client.h"

/* The namespace's one-block arena, packed form. */
static int simple_region(struct skvc_session *s, uint32_t ns, size_t bytes,
			 struct skvc_arena **ret_arena, uint32_t *ret_region)
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
	*ret_arena = namespace->simple_arena;
	*ret_region = namespace->simple_region;
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
	struct skvc_completion done;
	struct skvc_arena *arena;
	uint64_t job;
	int r;

	r = client_enter(session);
	if (r < 0)
		return r;
	if (!key || !data)
		return client_error(session, -EINVAL, "key or data is NULL");
	r = simple_region(session, ns, bytes, &arena, &store.region);
	if (r < 0)
		return r;
	memcpy(arena->ptr, data, bytes);
	r = client_submit_store(session, &store, true, &job);
	if (r < 0)
		return r;
	r = client_finish(session, job, &done);
	if (r < 0)
		return r;
	if (done.res < 0)
		return refused(session, &done, done.res);
	if (done.reason == SKVC_ABI_REASON_DUPLICATE)
		return refused(session, &done, -EEXIST);
	/* Taken in part is nothing taken, for one block. */
	return done.count ? 0 : refused(session, &done, -EAGAIN);
}

static int load_one(struct skvc_session *s, uint64_t lease, uint32_t region)
{
	const uint32_t block = 0;
	const struct skvc_load load = {
		.lease = lease, .region = region, .count = 1, .blocks = &block
	};
	struct skvc_completion done;
	uint64_t job;
	int r;

	r = client_submit_load(s, &load, true, &job);
	if (r < 0)
		return r;
	r = client_finish(s, job, &done);
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
	struct skvc_completion done, released;
	struct skvc_arena *arena;
	uint32_t region;
	uint64_t job;
	int r;

	r = client_enter(session);
	if (r < 0)
		return r;
	if (!key || !data)
		return client_error(session, -EINVAL, "key or data is NULL");
	r = simple_region(session, ns, bytes, &arena, &region);
	if (r < 0)
		return r;
	r = client_submit_lookup(session, &lookup, true, &job);
	if (r < 0)
		return r;
	r = client_finish(session, job, &done);
	if (r < 0)
		return r;
	if (done.res < 0)
		return refused(session, &done, done.res);
	if (!done.count)
		return refused(session, &done, -ENOENT);
	r = load_one(session, done.lease, region);
	if (!r)
		memcpy(data, arena->ptr, bytes);
	/* A lease that cannot be given back runs out by itself. */
	if (!client_submit_release(session, done.lease, true, &job))
		(void)client_finish(session, job, &released);
	return r;
}
