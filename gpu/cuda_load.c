/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_load.c - the shared object with the CUDA device, found at run time: the daemon is built and runs
 * without CUDA.  What is loaded stays loaded, whatever becomes of it: the driver has threads of its own
 * and cannot be taken out of a process.
 *
 * The path comes from the configuration; the object runs with all that the daemon may do.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "gpu/device.h"

static const char *load_error(void)
{
	const char *text = dlerror();

	return text ? text : "unknown error";
}

/* The address of a function in it.  err: one line, DEVICE_ERR_BYTES. */
static int load_symbol(const char *library, const char *name, void **ret_symbol, char *err)
{
	const char *text;
	void *object;

	/* Without a slash the system's folders would be searched: never what is meant. */
	if (!strchr(library, '/')) {
		(void)snprintf(err, DEVICE_ERR_BYTES, "%s: not a path", library);
		return -EINVAL;
	}
	if (access(library, F_OK) < 0) {
		int r = errno == ENOTDIR ? ENOENT : errno;

		(void)snprintf(err, DEVICE_ERR_BYTES, "%s: %s", library, strerror(r));
		return -r;
	}
	object = dlopen(library, RTLD_NOW | RTLD_LOCAL);
	if (!object) {
		text = load_error();
		(void)snprintf(err, DEVICE_ERR_BYTES, "%s", text);
		/* Linked with the driver, on a machine without one. */
		return strstr(text, "libcuda.so") ? -ENOENT : -ELIBBAD;
	}
	*ret_symbol = dlsym(object, name);
	if (*ret_symbol)
		return 0;
	(void)snprintf(err, DEVICE_ERR_BYTES, "%s", load_error());
	(void)dlclose(object); /* not ours, and nothing of it was called */
	return -ELIBBAD;
}

int cuda_load_device(const char *library, const struct gpu_device_options *options,
		     struct device **ret_device, char *err)
{
	cuda_device_new_fn device_new;
	void *symbol = NULL;
	int r = load_symbol(library, CUDA_DEVICE_SYMBOL, &symbol, err);

	if (r < 0)
		return r;
	/* POSIX makes this cast right; ISO C does not know it. */
	memcpy(&device_new, &symbol, sizeof(device_new));
	return device_new(options, ret_device, err);
}

int cuda_load_predictor(const char *library, const struct predictor_options *options,
			struct device **ret_device, char *err)
{
	cuda_predictor_new_fn predictor_new;
	void *symbol = NULL;
	int r = load_symbol(library, CUDA_PREDICTOR_SYMBOL, &symbol, err);

	if (r < 0)
		return r;
	memcpy(&predictor_new, &symbol, sizeof(predictor_new));
	return predictor_new(options, ret_device, err);
}
