// A page that is served by `python -m epo_jax.report --watch`: loads itself again when there is a newer one. Its address keeps what is shown.

setInterval(async () => {
  const answer = await fetch("version").catch(() => null);
  if (answer?.ok && (await answer.text()) !== WATCHED_VERSION) location.reload();
}, 3000);
