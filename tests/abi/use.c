/* SPDX-License-Identifier: Apache-2.0 */
/*
 * use.c - every function of skvc.h, called from C99 and from C++17, linked with the shared library: what
 * is declared is exported, and no declaration needs a newer language.  There is no daemon at that path,
 * so all that runs is the refusal.
 */
#include "client-lib/skvc.h"

#include <stdio.h>

static int touch_all(struct skvc_session *s)
{
	struct skvc_completion done;
	struct skvc_lease_status lease;
	struct skvc_arena *arena = NULL;
	uint64_t job = 0;
	uint32_t handle = 0;
	int accepted = 0;

	accepted += skvc_namespace_open(s, NULL, &handle) >= 0;
	accepted += skvc_arena_new(s, 4096, &arena) >= 0;
	accepted += skvc_arena_free(arena) != NULL;
	accepted += skvc_arena_ptr(arena) != NULL;
	accepted += skvc_arena_bytes(arena) != 0;
	accepted += skvc_register_host(s, 1, arena, 0, 1, NULL, &handle) >= 0;
	accepted += skvc_register_gpu(s, 1, NULL, 0, 1, NULL, &handle) >= 0;
	accepted += skvc_register_gpu_event(s, NULL, &handle) >= 0;
	accepted += skvc_unregister(s, 1) >= 0;
	accepted += skvc_lookup(s, NULL, &job) >= 0;
	accepted += skvc_load(s, NULL, &job) >= 0;
	accepted += skvc_store(s, NULL, &job) >= 0;
	accepted += skvc_release(s, 1, &job) >= 0;
	accepted += skvc_touch(s, 1, NULL, 1, &job) >= 0;
	accepted += skvc_drop(s, 1, NULL, 1, &job) >= 0;
	accepted += skvc_pin(s, 1, NULL, 1, 1, &job) >= 0;
	accepted += skvc_nop(s, &job) >= 0;
	accepted += skvc_poll(s, &done, 1) >= 0;
	accepted += skvc_wait(s, &job, 1, 0) >= 0;
	accepted += skvc_result(s, job, &done) >= 0;
	accepted += skvc_abort(s, job) >= 0;
	accepted += skvc_pending(s) != 0;
	accepted += skvc_event_fd(s) >= 0;
	accepted += skvc_arm(s) >= 0;
	accepted += skvc_lease_poll(s, 1, &lease) >= 0;
	accepted += skvc_put(s, 1, NULL, NULL, 0) >= 0;
	accepted += skvc_get(s, 1, NULL, NULL, 0) >= 0;
	accepted += skvc_reconnect(s) >= 0;
	accepted += skvc_close(s) != NULL;
	return accepted;
}

int main(void)
{
	struct skvc_session *session = NULL;

	if (skvc_open("/nonexistent/skvc.sock", NULL, &session) >= 0 || touch_all(session))
		return 1;
	printf("%s %s %s %s\n", skvc_version(), skvc_reason_name(0), skvc_reason_text(0),
	       skvc_last_error(session));
	return 0;
}
