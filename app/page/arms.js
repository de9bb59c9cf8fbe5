/* The arms: their names in PyTorch, and descriptions. */

export const ARMS = {
  grad: { name: "grad", what: "gradients on, as PyTorch starts" },
  no_grad: { name: "no_grad()", what: "nothing recorded" },
  set_grad_enabled_false: { name: "set_grad_enabled(False)", what: "the same, as a switch" },
  inference_mode: { name: "inference_mode()", what: "no version counters either" },
  frozen: { name: "frozen", what: "gradients on, for parameters that need none" },
  train: { name: "train()", what: "a copy without eval(), under no_grad()" },
  served: { name: "served", what: "what requests get: this backend and precision" },
};

/** An arm's name on the page. */
export function nameOf(arm) {
  return ARMS[arm]?.name ?? arm;
}
