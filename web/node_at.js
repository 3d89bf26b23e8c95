import { app } from "../../scripts/app.js";

/** The node at a path of ids such as "3:7": node 7 in the subgraph that node 3 is. */
export function nodeAt(path) {
  let graph = app.rootGraph ?? app.graph;
  let node;
  for (const id of String(path).split(":")) {
    node = graph?.getNodeById(Number(id));
    graph = node?.subgraph;
  }
  return node;
}
