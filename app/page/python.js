/* A Python program for the same requests. */

import { address, hasKey } from "./api.js";

// JSON's strings are Python's too.
const quoted = JSON.stringify;

/** The program that sends `parts` of pictures, each in a request, to `path` with the parameters. A sample is fetched
 * from this server first. */
export function pythonOf(path, parameters, parts) {
  const pictures = parts.flat();
  const usesFiles = pictures.some(({ sample }) => !sample);
  const imports = [hasKey() && "import os", usesFiles && "from pathlib import Path"].filter(Boolean);
  const single = pictures.length === 1;
  // The key itself is not copied.
  const headers = hasKey() ? `headers={"Authorization": f"Bearer {os.environ['GRADLESS_KEY']}"},` : null;
  const call = [
    "answer = requests.post(",
    ...[
      `${quoted(address(path))},`,
      `params=${dictionary(parameters)},`,
      headers,
      single ? `data=${contentOf(pictures[0])},` : 'files=[("images", picture) for picture in part],',
      "timeout=60,",
    ]
      .filter(Boolean)
      .map((line) => `    ${line}`),
    ")",
  ];
  return [
    ...imports,
    ...(imports.length ? [""] : []),
    "import requests  # pip install requests",
    "",
    ...(single ? [...call, "print(answer.json())"] : loop(parts, call)),
  ].join("\n");
}

function loop(parts, call) {
  const lines = parts.flatMap((part) => [
    "    [",
    ...part.map((picture) => `        (${quoted(picture.name)}, ${contentOf(picture)}),`),
    "    ],",
  ]);
  return [
    "parts = [",
    ...lines,
    "]",
    "for part in parts:",
    ...[
      ...call,
      "answer.raise_for_status()",
      'for (name, _), result in zip(part, answer.json()["results"]):',
      "    print(name, result)",
    ].map((line) => `    ${line}`),
  ];
}

function contentOf({ name, sample }) {
  if (sample) return `requests.get(${quoted(address(`samples/${name}`))}, timeout=60).content`;
  return `Path(${quoted(name)}).read_bytes()`;
}

function dictionary(parameters) {
  return `{${Object.entries(parameters)
    .map(([name, value]) => `${quoted(name)}: ${quoted(value)}`)
    .join(", ")}}`;
}
